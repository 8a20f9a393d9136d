//! The kinds of findings.

use crate::model::LaneReason;

crate::named::named! {
    /// Kinds of findings, beside the reasons for the device lane ([`LaneReason`]). `tests/kernel_doctor.rs` has a test for
    /// each that makes its condition.
    pub enum Code {
        /// The kernel is older than the oldest supported one.
        KernelTooOld = "kernel-too-old",
        /// Programs are attached by clsact.
        NoTcx = "no-tcx",
        /// The kernel has no tunnels of that kind.
        NoTunnelKind = "no-tunnel-kind",
        /// Programs are interpreted.
        JitOff = "jit-off",
        /// Frames on bridges go through netfilter.
        BridgeNetfilter = "bridge-netfilter",
        /// A privilege is missing without which nothing works.
        CapabilityMissing = "capability-missing",
        /// Foreign programs can't be opened.
        NoForeignNames = "no-foreign-names",
        /// Grace periods can't be shortened.
        NoRcuExpedited = "no-rcu-expedited",
        /// The pin directory isn't on a BPF file system.
        NoBpffs = "no-bpffs",
        /// The pins belong to another network namespace.
        OtherNamespace = "other-namespace",
        /// The live state can't be read.
        Unreadable = "unreadable",
        /// Others may enter the pin directory.
        PinsOpen = "pins-open",
        /// Something in the pin directory isn't ours.
        ForeignPin = "foreign-pin",
        /// A growth of the maps was interrupted.
        HalfGrown = "half-grown",
        /// A pin is left over.
        StalePin = "stale-pin",
        /// The maps are another version's.
        OutdatedMaps = "outdated-maps",
        /// Nothing says what was accepted.
        NoRecord = "no-record",
        /// The files are wrong.
        TopologyRejected = "topology-rejected",
        /// The record of what was accepted is wrong.
        RecordUnreadable = "record-unreadable",
        /// No interface has the source address of a tunnel.
        NoLocalAddress = "no-local-address",
        /// A device that the files name can't be used.
        UnusableDevice = "unusable-device",
        /// A mapping waits for its interface.
        Pending = "pending",
        /// A daemon is there and doesn't answer.
        DaemonSilent = "daemon-silent",
        /// None is there.
        NoDaemon = "no-daemon",
        /// The live state isn't what the files say.
        NotInForce = "not-in-force",
        /// The daemon's last pass failed.
        PassFailed = "pass-failed",
        /// The daemon can't watch the files.
        WatchFailed = "watch-failed",
        /// Somebody else has the port of a tunnel.
        PortTaken = "port-taken",
        /// What tenants send doesn't fit.
        MtuTooLarge = "mtu-too-large",
        /// A foreign program runs before ours.
        ForeignProgramFirst = "foreign-program-first",
        /// A foreign program runs behind ours.
        ForeignProgram = "foreign-program",
        /// A foreign program writes `tc_index`.
        TcIndexWritten = "tc-index-written",
        /// A foreign program makes the kernel overwrite `tc_index`.
        TcIndexReset = "tc-index-reset",
        /// What a foreign program does to `tc_index` can't be told.
        TcIndexUntold = "tc-index-untold",
    }
}

impl LaneReason {
    /// Whether somebody should be told of it: not of what the files say, or of what there is no fast lane for.
    pub fn is_finding(self) -> bool {
        !matches!(self, Self::FastOff | Self::Kind)
    }
}
