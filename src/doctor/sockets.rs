//! UDP sockets of this network namespace, from `/proc/net`, and who holds them.

use std::collections::BTreeMap;

/// A UDP socket that is bound to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Port.
    pub port: u16,
    /// Whether it is one of the kernel's own: a tunnel device's.
    pub kernel: bool,
    /// Process that holds it, where it could be found: id and name.
    pub process: Option<(u32, String)>,
}

/// All of them. What can't be read is missing: this is for naming culprits.
pub(super) fn udp() -> Vec<Socket> {
    let mut bound: Vec<(u16, u64)> = Vec::new();
    for table in ["udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        bound.extend(text.lines().skip(1).filter_map(bound_port));
    }
    bound.sort_unstable();
    bound.dedup();
    bound.into_iter().map(|(port, inode)| Socket { port, kernel: inode == 0, process: holder(inode) }).collect()
}

/// Port and inode of a line of `/proc/net/udp`.
fn bound_port(line: &str) -> Option<(u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, fields.get(9)?.parse().ok()?))
}

/// The first process that has that socket open.
fn holder(inode: u64) -> Option<(u32, String)> {
    if inode == 0 {
        return None;
    }
    let wanted = format!("socket:[{inode}]");
    let processes: BTreeMap<u32, _> = std::fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| Some((entry.ok()?.file_name().to_str()?.parse().ok()?, ())))
        .collect();
    let pid = processes.into_keys().find(|pid| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        descriptors.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read_and_garbage_is_not() {
        let line =
            "  421: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31337 2 0 0";
        assert_eq!(bound_port(line), Some((4789, 31337)));
        let six = "  1: 00000000000000000000000000000000:17C1 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 0 2 0 0";
        assert_eq!(bound_port(six), Some((6081, 0)));
        for garbage in ["", "sl local_address", "1: nothing", "1: 0:zz 2 3 4 5 6 7 8 9"] {
            assert_eq!(bound_port(garbage), None, "{garbage}");
        }
    }
}
