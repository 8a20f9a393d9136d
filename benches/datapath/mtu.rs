//! TCP between workloads whose MTU is the underlay's, which their tunnel has no room for, against the MTU that fits.

use crate::path::{Mode, Over, Path};
use crate::stream;
use crate::table::{Bar, Findings, Ratio, Rounds};
use crate::ways::KERNEL;

const ROUNDS: usize = 7;
/// Bytes of one transfer.
const BYTES: u64 = 1 << 30;
/// Of the underlay.
const WRONG: u32 = 1500;
/// What is asked of every mode of ours.
const BAR: Bar = Bar::AtLeast(0.9);

pub fn run(findings: &mut Findings) {
    let mut rows = Vec::new();
    for over in [Over::Ipv4, Over::Ipv6] {
        let paths: Vec<Path> = modes().map(|mode| Path::over(mode, over)).collect();
        let mut figures = vec![[Rounds::default(), Rounds::default()]; paths.len()];
        for _ in 0..ROUNDS {
            for (path, figures) in paths.iter().zip(&mut figures) {
                for (mtu, figures) in [over.mtu(), WRONG].into_iter().zip(figures) {
                    figures.0.push(transfer(path, mtu, BYTES));
                }
            }
        }
        let kernel = &figures[0];
        for (path, [right, wrong]) in paths.iter().zip(&figures) {
            let (mode, ours) = (path.mode.name().to_owned(), path.mode != Mode::Bridge);
            let measure = match over {
                Over::Ipv4 => "tcp with a wrong mtu over IPv4",
                Over::Ipv6 => "tcp with a wrong mtu over IPv6",
            };
            let bar = ours.then_some(BAR);
            let own =
                Ratio { mode: mode.clone(), measure, peer: Some("the right mtu"), ratio: wrong.ratio(right), bar };
            let other =
                Ratio { mode: mode.clone(), measure, peer: Some(KERNEL), ratio: wrong.ratio(&kernel[1]), bar: None };
            rows.push(vec![
                mode,
                format!("{over:?}").replace("Ip", "IP"),
                format!("{:.1} ({:.1})", right.median(), right.most()),
                format!("{:.1} ({:.1})", wrong.median(), wrong.most()),
                own.cell(),
                if ours { other.cell() } else { String::new() },
            ]);
            findings.ratios.push(own);
            findings.ratios.extend(ours.then_some(other));
        }
    }
    let head = [
        "TCP, Gb/s: median (best)",
        "underlay",
        "tenants' MTU as it should be",
        "MTU 1500",
        "against the right one",
        "against the kernel, MTU 1500",
    ];
    findings.table(&head, &rows);
}

fn modes() -> impl Iterator<Item = Mode> {
    Mode::ALL.into_iter().filter(|mode| !matches!(mode, Mode::Plain | Mode::Clone))
}

/// One transfer whose sender has yet to find out what fits.
fn transfer(path: &Path, mtu: u32, bytes: u64) -> f64 {
    path.set_mtu(mtu);
    path.sender.cmd("ip route flush cache");
    stream::pace(path, bytes)
}

/// No measurement: that what is too large is found out.
pub fn smoke() {
    for over in [Over::Ipv4, Over::Ipv6] {
        for path in modes().map(|mode| Path::over(mode, over)) {
            transfer(&path, WRONG, 1 << 20);
            let route = path.sender.cmd(&format!("ip route get {}", path.address(1)));
            let learned = format!("mtu {}", over.mtu());
            assert!(route.contains(&learned), "{}, {over:?}: {route}", path.mode.name());
            println!("{}, {over:?}: 1 MiB arrived with a wrong MTU", path.mode.name());
        }
    }
}
