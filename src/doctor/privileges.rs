//! What may be done, and what isn't possible without more.

use super::{Code, Facts, Findings};

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let privileges = &facts.privileges;
    let who = match privileges.daemon {
        Some(pid) => format!("the daemon (pid {pid})"),
        None => "this process".to_owned(),
    };
    let needed = [
        (CAP_BPF, "CAP_BPF", "load programs and read maps"),
        (CAP_NET_ADMIN, "CAP_NET_ADMIN", "attach them and make devices"),
    ];
    for (number, name, what_for) in needed {
        if !privileges.has(number) && !privileges.has(CAP_SYS_ADMIN)
            || number == CAP_NET_ADMIN && !privileges.has(number)
        {
            out.error(
                Code::CapabilityMissing,
                Some(name),
                format!("{who} lacks {name}, so it can't {what_for}"),
                "run as root, or give the unit AmbientCapabilities=CAP_BPF CAP_NET_ADMIN",
            );
        }
    }
    if !privileges.has(CAP_SYS_ADMIN) {
        out.note(
            Code::NoForeignNames,
            Some("CAP_SYS_ADMIN"),
            format!("{who} lacks CAP_SYS_ADMIN: foreign TC programs are shown by id, without name, and their instructions can't be read"),
            "run `tunnel-mesh doctor` and `status` as root to see names; the daemon needs nothing more",
        );
    }
    if !privileges.expedite {
        out.note(
            Code::NoRcuExpedited,
            Some("/sys/kernel/rcu_expedited"),
            format!("{who} can't write /sys/kernel/rcu_expedited: --rcu-expedited does nothing, and each first attach takes about 10 ms"),
            "nothing needs doing unless thousands of interfaces come at once; then run as root, or boot with rcupdate.rcu_expedited=1",
        );
    }
}
