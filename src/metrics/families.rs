//! Everything as Prometheus reads it. Pure.

use super::totals::{Grain, Totals};
use super::traffic::{Live, reasons};
use crate::model::Moment;
use crate::reconcile::board::{News, PASS_SECONDS};
use crate::reconcile::status::State;
use anyhow::{Context, Result};
use prometheus::core::Collector;
use prometheus::{Encoder, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, TextEncoder};

/// Every family: name and what it tells. Docs, alert rules and the dashboard speak of these.
pub const FAMILIES: &[(&str, &str)] = &[
    ("tunnel_mesh_build_info", "Version of tunnel-mesh; always 1"),
    ("tunnel_mesh_start_time_seconds", "When the daemon started, in seconds since 1970"),
    ("tunnel_mesh_config_last_load_successful", "Whether the topology files were accepted when they were read last"),
    (
        "tunnel_mesh_config_last_success_timestamp_seconds",
        "When topology files were accepted last, in seconds since 1970; 0 before the first time since the start",
    ),
    ("tunnel_mesh_config_unsaved", "Whether the accepted state could not be stored"),
    ("tunnel_mesh_topology_info", "Revision of the accepted topology, and the node it was compiled for; always 1"),
    ("tunnel_mesh_topology_files", "Topology files that were read"),
    ("tunnel_mesh_mappings", "Mappings by state, as the last pass left them"),
    ("tunnel_mesh_reconcile_passes_total", "Passes by result"),
    ("tunnel_mesh_reconcile_duration_seconds", "How long passes took"),
    ("tunnel_mesh_reconcile_last_timestamp_seconds", "When the last pass ended, in seconds since 1970"),
    ("tunnel_mesh_reconcile_operations_total", "Operations carried out"),
    ("tunnel_mesh_reconcile_errors", "What is wrong since the last pass"),
    ("tunnel_mesh_drift_repaired_total", "Changes that put right what others had altered"),
    ("tunnel_mesh_map_entries", "Entries of a map"),
    ("tunnel_mesh_map_capacity", "Entries that a map has room for; all but unknown and conf grow by themselves"),
    ("tunnel_mesh_packets_total", "Packets by tenant, remote and direction; a GSO packet counts as its segments"),
    ("tunnel_mesh_bytes_total", "Bytes by tenant, remote and direction, inner Ethernet frames"),
    ("tunnel_mesh_fast_packets_total", "Packets of those that took the fast lane"),
    ("tunnel_mesh_dropped_packets_total", "Packets dropped, by tenant and reason; without a tenant: of no mapping"),
    ("tunnel_mesh_netlink_overruns_total", "Link events that were lost, each followed by a full look"),
    ("tunnel_mesh_watch_overflows_total", "File events that were lost, each followed by a full look"),
    (
        "tunnel_mesh_watch_healthy",
        "Whether changes of the files are told by the kernel; else they are looked for every second",
    ),
    ("tunnel_mesh_metrics_coarse", "Whether remotes are put together as *, because there are too many"),
    ("tunnel_mesh_metrics_maps_readable", "Whether the maps could be read for this scrape"),
];

fn opts(name: &str) -> Result<Opts> {
    let (name, help) =
        FAMILIES.iter().find(|(known, _)| *known == name).with_context(|| format!("metric {name} is listed"))?;
    Ok(Opts::new(*name, *help))
}

/// A text under way.
struct Page(Vec<u8>);

impl Page {
    fn push(&mut self, family: &impl Collector) -> Result<()> {
        // An empty family is left out: the format has no word for one.
        let families = family.collect();
        let full: Vec<_> = families.into_iter().filter(|f| !f.get_metric().is_empty()).collect();
        TextEncoder::new().encode(&full, &mut self.0).context("write metrics")
    }

    fn gauge(&mut self, name: &str, value: f64) -> Result<()> {
        let gauge = Gauge::with_opts(opts(name)?)?;
        gauge.set(value);
        self.push(&gauge)
    }

    fn flag(&mut self, name: &str, value: bool) -> Result<()> {
        let gauge = IntGauge::with_opts(opts(name)?)?;
        gauge.set(value.into());
        self.push(&gauge)
    }

    fn counter(&mut self, name: &str, value: u64) -> Result<()> {
        let counter = IntCounter::with_opts(opts(name)?)?;
        counter.inc_by(value);
        self.push(&counter)
    }

    fn gauges<'a>(
        &mut self,
        name: &str,
        labels: &[&str],
        values: impl Iterator<Item = (Vec<&'a str>, u64)>,
    ) -> Result<()> {
        let family = IntGaugeVec::new(opts(name)?, labels)?;
        for (labels, value) in values {
            family.get_metric_with_label_values(&labels)?.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.push(&family)
    }

    fn counters<'a>(
        &mut self,
        name: &str,
        labels: &[&str],
        values: impl Iterator<Item = (Vec<&'a str>, u64)>,
    ) -> Result<()> {
        let family = IntCounterVec::new(opts(name)?, labels)?;
        for (labels, value) in values {
            family.get_metric_with_label_values(&labels)?.inc_by(value);
        }
        self.push(&family)
    }

    /// A histogram that was counted elsewhere.
    fn histogram(&mut self, name: &str, bounds: &[f64], counts: &[u64], sum: f64) -> Result<()> {
        use std::fmt::Write;
        let opts = opts(name)?;
        let mut text = format!("# HELP {name} {}\n# TYPE {name} histogram\n", opts.help);
        let mut below = 0;
        for (count, bound) in counts.iter().zip(bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()])) {
            below += count;
            writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {below}")?;
        }
        writeln!(text, "{name}_sum {sum}\n{name}_count {below}")?;
        self.0.extend(text.into_bytes());
        Ok(())
    }
}

fn seconds(moment: Option<Moment>) -> f64 {
    moment.map_or(0.0, |m| m.seconds() as f64)
}

/// The text. `live` is `None` where the maps couldn't be read.
///
/// # Errors
///
/// When a value can't be written, which doesn't happen.
pub fn render(news: &News, live: Option<&Live>, totals: &Totals) -> Result<String> {
    let mut page = Page(Vec::with_capacity(1 << 14));
    let health = &news.health;
    page.gauges("tunnel_mesh_build_info", &["version"], [(vec![env!("CARGO_PKG_VERSION")], 1)].into_iter())?;
    page.gauge("tunnel_mesh_start_time_seconds", seconds(health.started))?;
    page.flag("tunnel_mesh_config_last_load_successful", news.config_error.is_none())?;
    page.gauge("tunnel_mesh_config_last_success_timestamp_seconds", seconds(news.accepted_at))?;
    page.flag("tunnel_mesh_config_unsaved", news.unsaved)?;
    let desired = news.intent.as_ref().map(|i| &i.desired);
    let info = desired.map(|d| (vec![d.revision.as_str(), d.node.as_deref().unwrap_or_default()], 1));
    page.gauges("tunnel_mesh_topology_info", &["revision", "node"], info.into_iter())?;
    page.gauge("tunnel_mesh_topology_files", news.files as f64)?;
    let states = [State::Active, State::Pending, State::Held, State::Drifted].map(|s| (s, s.to_string()));
    let states = states.iter().map(|(s, name)| (vec![name.as_str()], news.states.get(s).copied().unwrap_or_default()));
    page.gauges("tunnel_mesh_mappings", &["state"], states)?;

    let (passes, failed) = (news.progress.passes, news.progress.failed_passes);
    let results = [(vec!["good"], passes.saturating_sub(failed)), (vec!["failed"], failed)];
    page.counters("tunnel_mesh_reconcile_passes_total", &["result"], results.into_iter())?;
    let durations = &news.durations;
    page.histogram("tunnel_mesh_reconcile_duration_seconds", &PASS_SECONDS, &durations.counts, durations.sum)?;
    page.gauge("tunnel_mesh_reconcile_last_timestamp_seconds", seconds(health.last_pass.as_ref().map(|p| p.at)))?;
    page.counter("tunnel_mesh_reconcile_operations_total", news.progress.operations)?;
    page.gauge("tunnel_mesh_reconcile_errors", news.progress.errors.len() as f64)?;
    page.counter("tunnel_mesh_drift_repaired_total", news.progress.drift_repaired)?;

    if let Some(live) = live {
        let entries = live.entries.iter().map(|(map, n)| (vec![*map], *n));
        page.gauges("tunnel_mesh_map_entries", &["map"], entries)?;
        let capacities = live.capacities.iter().map(|(map, n)| (vec![*map], *n));
        page.gauges("tunnel_mesh_map_capacity", &["map"], capacities)?;
    }
    let labels = ["tenant", "remote", "direction"];
    let ways = [
        ("tunnel_mesh_packets_total", 0, 2),
        ("tunnel_mesh_bytes_total", 1, 3),
        ("tunnel_mesh_fast_packets_total", 4, 5),
    ];
    for (name, rx, tx) in ways {
        let both = totals.traffic.iter().flat_map(|(pair, amounts)| {
            let way =
                |direction, place: usize| (vec![pair.tenant.as_str(), pair.remote.as_str(), direction], amounts[place]);
            [way("rx", rx), way("tx", tx)]
        });
        page.counters(name, &labels, both)?;
    }
    let none = String::new();
    let absent =
        reasons().filter(|r| !totals.drops.contains_key(&(none.clone(), (*r).to_owned()))).map(|r| (vec!["", r], 0));
    let drops = totals.drops.iter().map(|((tenant, reason), n)| (vec![tenant.as_str(), reason.as_str()], *n));
    page.counters("tunnel_mesh_dropped_packets_total", &["tenant", "reason"], drops.chain(absent))?;

    page.counter("tunnel_mesh_netlink_overruns_total", health.netlink_overruns)?;
    page.counter("tunnel_mesh_watch_overflows_total", health.watch_overflows)?;
    page.flag("tunnel_mesh_watch_healthy", health.watch_error.is_none())?;
    page.flag("tunnel_mesh_metrics_coarse", totals.grain == Grain::Tenants)?;
    page.flag("tunnel_mesh_metrics_maps_readable", live.is_some())?;
    String::from_utf8(page.0).context("write metrics")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_family_is_told_and_no_other() {
        use crate::metrics::traffic::Owner;
        use crate::reconcile::status::Traffic;
        let mut totals = Totals::default();
        let owner = Owner { tenant: "r\"e\\d\n".to_owned(), remote: "fd00::1".parse().unwrap() };
        totals.add(&[(64, owner)].into(), &[(64, Traffic { tx_bytes: 7, ..Traffic::default() })].into());
        let live = Live { entries: [("conf", 1)].into(), capacities: [("conf", 63)].into(), ..Live::default() };
        let news = News { intent: Some(std::sync::Arc::default()), ..News::default() };
        let text = render(&news, Some(&live), &totals).unwrap();
        let typed: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let mut listed: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let mut told = typed.clone();
        told.sort_unstable();
        listed.sort_unstable();
        assert_eq!(told, listed);
        // Whatever a tenant is called.
        assert!(text.contains(r#"{direction="tx",remote="fd00::1",tenant="r\"e\\d\n"} 7"#), "{text}");
    }
}
