//! Whether the UDP ports of the tunnels are free, or the tunnels' own.

use super::{Code, Facts, Findings};

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    for tunnel in desired.tunnels.values() {
        let Some(port) = tunnel.port else { continue };
        let own = live.observed.link(&tunnel.name);
        let has_it = own.is_some_and(|l| l.up && l.tunnel.as_ref().is_some_and(|t| t.port == Some(port)));
        if has_it {
            continue;
        }
        let rival = live
            .observed
            .links
            .iter()
            .find(|l| l.name != tunnel.name && l.up && l.tunnel.as_ref().is_some_and(|t| t.port == Some(port)));
        let holder = match (rival, facts.sockets.iter().find(|s| s.port == port)) {
            (Some(rival), _) => format!("the {} device {}", rival.kind, rival.name),
            (None, Some(socket)) => match &socket.process {
                Some((pid, name)) => format!("{name} (pid {pid})"),
                None if socket.kernel => "the kernel itself, for something that isn't a tunnel device".to_owned(),
                None => "a process that can't be named from here".to_owned(),
            },
            (None, None) => continue,
        };
        let what = format!("UDP port {port} of tunnel {} is taken by {holder}: its device can't come up", tunnel.name);
        let remedy =
            format!("free the port (ss -ulnp 'sport = :{port}'), or give the tunnel another `port` on every host");
        out.error(Code::PortTaken, Some(&tunnel.name), what, remedy);
    }
}
