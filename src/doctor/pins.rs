//! The pin directory: where it is, whose it is, and what was left there.

use super::{Blind, Code, Facts, Findings};

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let paths = &facts.paths;
    let pins = paths.pins.as_str();
    if !paths.bpffs {
        out.error(
            Code::NoBpffs,
            Some(pins),
            "the pin directory isn't on a BPF file system: nothing can be pinned",
            "mount -t bpf bpf /sys/fs/bpf; inside `ip netns exec`, which hides it, use nsenter --net= instead",
        );
    }
    match &facts.blind {
        Some(Blind::OtherNamespace(why)) => {
            out.error(
                Code::OtherNamespace,
                Some(pins),
                why.clone(),
                "run it in that namespace, or use another --pin-dir",
            );
        }
        Some(Blind::Failed(why)) => {
            let what = format!("the live state can't be read: {why}");
            out.error(Code::Unreadable, Some(pins), what, "see the error; `tunnel-mesh down` removes what is ours");
        }
        Some(Blind::Denied) => {
            let what = "the live state can't be read without privileges: pins, programs and maps were not looked at";
            out.error(Code::Unreadable, Some(pins), what, "run `tunnel-mesh doctor` as root or as the daemon's user");
        }
        None => {}
    }
    if let Some(mode) = paths.open_to_others {
        let what = format!("the pin directory has mode {mode:04o}: others can open the maps and write to them");
        out.warning(Code::PinsOpen, Some(pins), what, format!("chmod 0700 {pins}"));
    }
    for name in &paths.foreign_pins {
        let what = format!("{name} isn't tunnel-mesh's: `down` leaves the directory because of it");
        out.note(Code::ForeignPin, Some(pins), what, format!("unpin it (rm {pins}/{name}) if nobody needs it"));
    }
    if paths.half_grown {
        let what = "a growth of the maps was interrupted; nothing is written until it is finished";
        out.warning(Code::HalfGrown, Some(pins), what, "start the daemon, or run `tunnel-mesh apply`: both finish it");
    }
    let Some(live) = &facts.live else { return };
    let remedy = if facts.daemon.is_some() {
        "the daemon's next pass removes it; if it stays, see `tunnel-mesh status`"
    } else {
        "start the daemon, or run `tunnel-mesh apply`: both remove it"
    };
    for attachment in live.observed.attachments.iter().filter(|a| a.program.is_none()) {
        let name = format!("links/{}_{}", attachment.direction, attachment.ifindex);
        let what = format!("{name} is a pin of an attachment whose interface is gone");
        out.warning(Code::StalePin, Some(&name), what, remedy);
    }
    let maps = live.observed.maps.as_ref();
    for program in &live.observed.programs {
        let crate::model::Program::HandleIngress { tunnel } = program.program else { continue };
        if maps.is_some_and(|m| !m.conf.contains_key(&tunnel)) {
            let name = format!("programs/handle_ingress_{tunnel}");
            let what = format!("{name} is the program of a tunnel index that no tunnel has");
            out.warning(Code::StalePin, Some(&name), what, remedy);
        }
    }
    if let Some(why) = &live.observed.outdated_maps {
        let what = format!("the pinned maps are another version's ({why})");
        out.warning(Code::OutdatedMaps, Some(pins), what, "the next pass makes them anew beside what runs");
    }
    if maps.is_some() && facts.accepted.is_none() && facts.unreadable.is_none() {
        let what = "maps are pinned, but no topology was ever accepted here: what runs is compared with nothing";
        out.warning(
            Code::NoRecord,
            Some(pins),
            what,
            "run `tunnel-mesh apply`, or `tunnel-mesh down` if it is left over",
        );
    }
}
