//! Why packets take the device lane: the kinds of reasons.

crate::named::named! {
    /// What keeps packets from the fast lane. `docs/lanes.md` has the same list, with what to do.
    pub enum LaneReason {
        /// The files say so.
        FastOff = "fast-off",
        /// There is no fast lane for that kind of tunnel.
        Kind = "kind",
        /// The tunnel has no source address of that family on this host.
        NoSourceAddress = "no-source-address",
        /// The fast lane sends no UDP checksum, and that may not do.
        Checksum = "checksum",
        /// The tunnel device doesn't forward.
        Forwarding = "forwarding",
        /// The kernel would forget a default route that it learned.
        LearnedRoute = "learned-route",
        /// A VRF.
        RoutingDomain = "routing-domain",
        /// The link with the source address isn't one that the fast lane can use.
        UnderlayDevice = "underlay-device",
        /// A routing rule.
        RoutingRule = "routing-rule",
        /// IPsec.
        Ipsec = "ipsec",
        /// A netfilter chain.
        Netfilter = "netfilter",
        /// A TC program of somebody else.
        TcProgram = "tc-program",
        /// More tunnels than the programs know by one underlay device.
        TooManyTunnels = "too-many-tunnels",
        /// Something of the above could not be read.
        Unread = "unread",
    }
}
