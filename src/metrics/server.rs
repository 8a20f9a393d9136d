//! `/metrics`, `/livez` and `/readyz`, on a thread of their own.

use super::{Totals, render, traffic};
use crate::reconcile::board::Board;
use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long a client may take for all of its request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients at a time; more wait to be heard.
const CLIENTS_MAX: usize = 16;
/// How long a text serves those who ask again.
const FRESH: Duration = Duration::from_millis(200);
/// Silence of the daemon after which it isn't alive. It gives a sign every second, during passes too.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The text format's content type.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An open socket that nobody is answered on yet.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Opens it. `:PORT` means every address, IPv6 and IPv4.
    ///
    /// # Errors
    ///
    /// When the address isn't one, or can't be had.
    pub fn open(address: &str) -> Result<Self> {
        let what = || format!("listen for metrics on {address}");
        let bound = match address.strip_prefix(':') {
            Some(port) => {
                let port: u16 = port.parse().with_context(what)?;
                // A kernel without IPv6 has no such family.
                TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.raw_os_error() {
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
                    _ => Err(error),
                })
            }
            None => TcpListener::bind(address.parse::<SocketAddr>().with_context(what)?),
        };
        let socket = bound.with_context(|| match address.rsplit_once(':') {
            Some((_, port)) => format!("{} (who has the port: ss -tlnp 'sport = :{port}')", what()),
            None => what(),
        })?;
        socket.set_nonblocking(true).with_context(what)?;
        Ok(Self(socket))
    }

    /// The address; the port is the one that the kernel chose where 0 was asked for.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn address(&self) -> Result<SocketAddr> {
        self.0.local_addr().context("ask for the address of the metrics")
    }
}

/// What an answer is made of.
struct Source {
    board: Arc<Board>,
    pins: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    totals: Totals,
    text: Option<(Instant, Bytes)>,
}

/// Answers until the process ends, on a thread of its own.
///
/// # Errors
///
/// When the thread can't be made.
pub fn serve(listener: Listener, board: Arc<Board>, pins: PathBuf) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the metrics server")?;
    let run = move || {
        let ended: Result<()> = runtime.block_on(async {
            let socket = tokio::net::TcpListener::from_std(listener.0).context("listen for metrics")?;
            accept(socket, Arc::new(Source { board, pins, kept: Mutex::default() })).await
        });
        if let Err(error) = ended {
            tracing::error!("{error:#}");
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(run).context("start the metrics server").map(drop)
}

async fn accept(socket: tokio::net::TcpListener, source: Arc<Source>) -> Result<()> {
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let place = Arc::clone(&room).acquire_owned().await.context("wait for a place")?;
        let (stream, _) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!("accept a client of the metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let source = Arc::clone(&source);
                async move { Ok::<_, Infallible>(answer(&source, &request)) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            // A client that reads nothing keeps its place for that long, and nobody else waiting.
            let talk = server.serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(PATIENCE, talk).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("a client of the metrics: {error}"),
                Err(_) => tracing::debug!("a client of the metrics took too long"),
            }
            drop(place);
        });
    }
}

fn answer(source: &Source, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET is all there is\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match metrics(source) {
            Ok(text) => {
                let mut response = Response::new(Full::new(text));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                response
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
        },
        "/livez" => {
            let silence = source.board.silence();
            if silence < SILENCE_MAX {
                plain(StatusCode::OK, "alive\n")
            } else {
                let text = format!("no sign of life for {} s\n", silence.as_secs());
                plain(StatusCode::SERVICE_UNAVAILABLE, &text)
            }
        }
        "/readyz" => match source.board.read().ready() {
            Ok(()) => plain(StatusCode::OK, "ready\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "there is /metrics, /livez and /readyz\n"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn metrics(source: &Source) -> Result<Bytes> {
    let mut kept = source.kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, text)) = &kept.text
        && at.elapsed() < FRESH
    {
        return Ok(text.clone());
    }
    let news = source.board.read();
    let live = traffic::read(&source.pins, news.intent.as_ref().map(|i| &i.desired));
    let live = match live {
        Ok(live) => {
            kept.totals.add(&live.owners, &live.counted);
            Some(live)
        }
        Err(error) => {
            tracing::warn!("metrics: read the maps: {error:#}");
            None
        }
    };
    let text = Bytes::from(render(&news, live.as_ref(), &kept.totals)?);
    kept.text = Some((Instant::now(), text.clone()));
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_in_both_families_and_a_taken_one_is_named() {
        let one = Listener::open("127.0.0.1:0").unwrap();
        let taken = one.address().unwrap().to_string();
        let error = format!("{:#}", Listener::open(&taken).unwrap_err());
        assert!(error.contains(&format!("listen for metrics on {taken}")) && error.contains("ss -tlnp"), "{error}");
        assert!(Listener::open("[::1]:0").unwrap().address().unwrap().is_ipv6());
        assert!(Listener::open(":0").unwrap().address().unwrap().ip().is_unspecified());
        for garbage in ["", "9469", "localhost:9469", ":x", "127.0.0.1"] {
            assert!(Listener::open(garbage).is_err(), "{garbage}");
        }
    }
}
