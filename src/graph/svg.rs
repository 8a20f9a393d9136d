//! As a picture that needs nothing else to draw it.
//!
//! Hosts are rows, tenants are columns, as on a map of a railway: a station where a host is a member, a track between
//! two stations for each link. Neighbours are joined directly, others by an arc. What stands out is dashed, has a sign on
//! it, and is said in words below.

use super::{Host, Link, Mark, Mesh, Tenant};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const MARGIN: f64 = 28.0;
const TITLE: f64 = 56.0;
const HEADER: f64 = 72.0;
const ROW: f64 = 58.0;
/// Most arcs of a tenant that are drawn as strongly as their neighbours' tracks.
const STRONG: usize = 15;
/// Most links that are told in words.
const TOLD: usize = 40;
/// Longest name that is written out, in characters.
const NAME: usize = 28;

struct Picture<'a> {
    mesh: &'a Mesh,
    /// Middle of each tenant's tracks.
    columns: Vec<f64>,
    /// How far to the right a tenant's arcs may go.
    room: Vec<f64>,
    hosts_width: f64,
    width: f64,
    out: String,
}

/// The document.
pub fn render(mesh: &Mesh) -> String {
    let hosts_width = mesh.hosts.iter().map(host_width).fold(120.0, f64::max);
    let (mut columns, mut room) = (Vec::new(), Vec::new());
    let mut x = MARGIN + hosts_width + 40.0;
    for (t, tenant) in mesh.tenants.iter().enumerate() {
        let text = [tenant.title().to_owned(), tenant.key(), tenant.bridge.clone().unwrap_or_default()];
        let labels = stations(mesh, t).values().map(|l| wide(l, 6.2)).fold(0.0, f64::max);
        let header = text.iter().map(|line| wide(line, 6.6)).fold(0.0, f64::max);
        let arcs = 30.0 + 9.0 * mesh.hosts.len().min(8) as f64;
        let left = labels.max(10.0) + 24.0;
        columns.push(x + left);
        room.push(arcs);
        x += (left + arcs + 24.0).max(header + 40.0);
    }
    let title = title(mesh);
    let width = (x + MARGIN).max(wide(&title, 9.0) + 2.0 * MARGIN).max(560.0);
    let mut picture = Picture { mesh, columns, room, hosts_width, width, out: String::new() };
    picture.rows();
    for tenant in 0..mesh.tenants.len() {
        picture.tenant(tenant);
    }
    let bottom = picture.legend(TITLE + HEADER + ROW * mesh.hosts.len() as f64 + 12.0);
    let body = picture.out;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{bottom:.0}\" viewBox=\"0 0 {width:.0} \
         {bottom:.0}\" font-family=\"system-ui, 'DejaVu Sans', 'Liberation Sans', sans-serif\" font-size=\"12\" \
         fill=\"#1f2933\">\n<title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"36\" font-size=\"17\" font-weight=\"600\">{0}</text>\n{body}</svg>\n",
        escape(&title)
    )
}

fn title(mesh: &Mesh) -> String {
    let count = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let looked: Vec<&str> = mesh.hosts.iter().filter(|h| h.here).map(|h| h.name.as_str()).collect();
    let state = if looked.is_empty() { "as declared".to_owned() } else { format!("as seen on {}", looked.join(", ")) };
    format!(
        "{}, {}, {}, {state}",
        count(mesh.hosts.len(), "host"),
        count(mesh.tenants.len(), "tenant"),
        count(mesh.links.len(), "link")
    )
}

fn host_width(host: &Host) -> f64 {
    wide(&host.name, 7.6).max(wide(&addresses(host), 6.2)) + 24.0
}

fn addresses(host: &Host) -> String {
    let all: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// What a tenant's stations are labelled with, by host.
fn stations(mesh: &Mesh, tenant: usize) -> BTreeMap<usize, String> {
    let links: Vec<&Link> = mesh.links.iter().filter(|link| link.tenant == tenant).collect();
    let mut degree: BTreeMap<usize, usize> = BTreeMap::new();
    links.iter().for_each(|l| [l.hosts.0, l.hosts.1].iter().for_each(|h| *degree.entry(*h).or_default() += 1));
    let mut labels: BTreeMap<usize, BTreeSet<&str>> = degree.keys().map(|host| (*host, BTreeSet::new())).collect();
    for link in links {
        let ends = [(link.hosts.0, link.hosts.1, &link.interfaces.0), (link.hosts.1, link.hosts.0, &link.interfaces.1)];
        for (own, other, interface) in ends {
            let Some(interface) = interface else { continue };
            // Where a station has many interfaces, each stands where it leads to.
            let at = if degree.get(&own).is_some_and(|n| *n > 1) { other } else { own };
            labels.entry(at).or_default().insert(interface);
        }
    }
    let join = |names: BTreeSet<&str>| cut(&names.into_iter().collect::<Vec<_>>().join(", "));
    labels.into_iter().map(|(host, names)| (host, join(names))).collect()
}

impl Picture<'_> {
    fn row(&self, host: usize) -> f64 {
        TITLE + HEADER + ROW * (host as f64 + 0.5)
    }

    fn put(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a String can't fail.
        let _ = self.out.write_fmt(arguments);
        self.out.push('\n');
    }

    fn rows(&mut self) {
        let (x, end) = (MARGIN + self.hosts_width, self.width - MARGIN);
        for n in 0..self.mesh.hosts.len() {
            let (y, host) = (self.row(n), &self.mesh.hosts[n]);
            let (fill, stroke, thick) =
                if host.here { ("#fff7db", "#8a6d00", 2.5) } else { ("#f2f5f9", "#7b8794", 1.2) };
            let (name, addresses) = (escape(&cut(&host.name)), escape(&addresses(host)));
            let width = self.hosts_width;
            self.put(format_args!(
                "<line x1=\"{x}\" y1=\"{y}\" x2=\"{end}\" y2=\"{y}\" stroke=\"#e4e7eb\"/>\n\
                 <rect x=\"{MARGIN}\" y=\"{}\" width=\"{width}\" height=\"40\" rx=\"6\" fill=\"{fill}\" \
                 stroke=\"{stroke}\" stroke-width=\"{thick}\"/>\n\
                 <text x=\"{}\" y=\"{}\" font-weight=\"600\" font-size=\"13\">{name}</text>\n\
                 <text x=\"{}\" y=\"{}\" font-size=\"10.5\" fill=\"#52606d\">{addresses}</text>",
                y - 20.0,
                MARGIN + 12.0,
                y - 3.0,
                MARGIN + 12.0,
                y + 12.0
            ));
        }
    }

    fn tenant(&mut self, t: usize) {
        let (x, tenant) = (self.columns[t], &self.mesh.tenants[t]);
        self.header(x, tenant);
        let labels = stations(self.mesh, t);
        let mut links: Vec<&Link> = self.mesh.links.iter().filter(|link| link.tenant == t).collect();
        let strong = links.len() <= STRONG;
        // What stands out lies on top.
        links.sort_by_key(|link| link.mark);
        let order: BTreeMap<usize, usize> = labels.keys().enumerate().map(|(n, host)| (*host, n)).collect();
        let mut signs = Vec::new();
        for link in links {
            let apart = order[&link.hosts.1].abs_diff(order[&link.hosts.0]);
            signs.extend(self.link(x, self.room[t], tenant.color, link, apart, strong));
        }
        // On top of every track.
        signs.into_iter().for_each(|(x, y, mark)| self.sign(x, y, mark));
        for (host, label) in labels {
            let y = self.row(host);
            self.put(format_args!(
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"6.5\" fill=\"#ffffff\" stroke=\"{}\" stroke-width=\"3.5\"/>",
                tenant.color
            ));
            if !label.is_empty() {
                self.put(format_args!(
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"10.5\" fill=\"#3e4c59\" stroke=\"#ffffff\" \
                     stroke-width=\"3\" paint-order=\"stroke\">{}</text>",
                    x - 13.0,
                    y - 5.0,
                    escape(&label)
                ));
            }
        }
    }

    fn header(&mut self, x: f64, tenant: &Tenant) {
        let (x, y) = (x - 8.0, TITLE + 14.0);
        let bridge = tenant.bridge.as_ref().map(|b| format!("bridge {b}")).unwrap_or_default();
        self.put(format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"14\" font-weight=\"700\" fill=\"{}\">{}</text>\n\
             <text x=\"{x}\" y=\"{}\" font-size=\"10.5\" fill=\"#52606d\">{}</text>\n\
             <text x=\"{x}\" y=\"{}\" font-size=\"10.5\" fill=\"#52606d\">{}</text>",
            tenant.color,
            escape(&cut(tenant.title())),
            y + 16.0,
            escape(&tenant.key()),
            y + 31.0,
            escape(&bridge)
        ));
    }

    /// One track; `apart`: how many stations of the tenant it spans. Returns where it has which sign.
    fn link(
        &mut self,
        x: f64,
        room: f64,
        color: &str,
        link: &Link,
        apart: usize,
        strong: bool,
    ) -> Option<(f64, f64, Mark)> {
        let (from, to) = (self.row(link.hosts.0), self.row(link.hosts.1));
        let notable = link.mark.stands_out();
        // A curve goes three quarters of the way to its handles.
        let bulge = if apart <= 1 && !notable { 0.0 } else { (16.0 + 9.0 * apart as f64).min(room) };
        let handle = x + bulge / 0.75;
        let (width, opacity) = match (notable, apart) {
            (true, _) => (3.0, 1.0),
            (false, 0 | 1) => (3.5, 1.0),
            (false, _) if strong => (2.0, 0.85),
            (false, _) => (1.1, 0.3),
        };
        let dash = match link.mark {
            Mark::Pending => " stroke-dasharray=\"7 5\"",
            Mark::Held => " stroke-dasharray=\"2 4\"",
            Mark::Broken => " stroke-dasharray=\"12 3 2 3\"",
            Mark::Declared | Mark::Active => "",
        };
        let told = escape(&self.mesh.describe(link));
        self.put(format_args!(
            "<path d=\"M{x} {from}C{handle:.1} {from} {handle:.1} {to} {x} {to}\" fill=\"none\" stroke=\"{color}\" \
             stroke-width=\"{width}\" stroke-opacity=\"{opacity}\"{dash}><title>{told}</title></path>"
        ));
        notable.then_some((x + bulge, (from + to) / 2.0, link.mark))
    }

    /// The sign of a state.
    fn sign(&mut self, x: f64, y: f64, mark: Mark) {
        let (color, sign) = match mark {
            Mark::Broken => ("#b3001b", "×"),
            Mark::Held => ("#52606d", "="),
            _ => ("#9a6700", "…"),
        };
        self.put(format_args!(
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"8\" fill=\"#ffffff\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-size=\"13\" font-weight=\"700\" fill=\"{color}\">{sign}</text>",
            if mark == Mark::Pending { y + 1.5 } else { y + 4.5 }
        ));
    }

    /// What the signs mean and what stands out, in words; returns where it ends.
    fn legend(&mut self, top: f64) -> f64 {
        let mut y = top + 14.0;
        let mut line = |picture: &mut Self, mark: Option<Mark>, text: &str| {
            if let Some(mark) = mark {
                picture.sign(MARGIN + 9.0, y - 4.0, mark);
            }
            let x = if mark.is_some() { MARGIN + 26.0 } else { MARGIN };
            picture.put(format_args!("<text x=\"{x}\" y=\"{y}\" font-size=\"11.5\">{}</text>", escape(text)));
            y += 22.0;
        };
        if self.mesh.looked() {
            let notable: Vec<(Mark, String)> = self.mesh.notable().map(|l| (l.mark, self.mesh.describe(l))).collect();
            if notable.is_empty() {
                line(self, None, "Every mapping of the framed host is in force; the others are as declared.");
            }
            for (mark, text) in notable.iter().take(TOLD) {
                line(self, Some(*mark), &fold(text, self.width));
            }
            if notable.len() > TOLD {
                line(self, None, &format!("and {} more", notable.len() - TOLD));
            }
        } else {
            line(self, None, "Every track is a mapping at both of its ends, as the files declare it.");
        }
        y + 8.0
    }
}

/// As much of a line as the picture is wide.
fn fold(text: &str, width: f64) -> String {
    let most = ((width - 2.0 * MARGIN - 26.0) / 6.2).max(20.0) as usize;
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

/// How wide a text is, about.
fn wide(text: &str, each: f64) -> f64 {
    each * text.chars().count().min(60) as f64
}

fn cut(text: &str) -> String {
    if text.chars().count() <= NAME { text.to_owned() } else { text.chars().take(NAME - 1).chain(['…']).collect() }
}

/// Text of an element. XML has no control characters.
fn escape(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|c| if c.is_control() || c > '\u{fffd}' && c < '\u{10000}' { '\u{fffd}' } else { c })
        .collect();
    shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
