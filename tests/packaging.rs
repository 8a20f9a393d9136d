//! What is shipped beside the binary for those who watch it: alert rules and a dashboard. Not part of the runs on other
//! kernels: nothing here depends on one.

#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tunnel_mesh::metrics::FAMILIES;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> PathBuf {
    root().join("packaging/prometheus/tunnel-mesh.rules.yml")
}

fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).output().expect("promtool is there (scripts/deps.sh test)");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}:\n{out}{err}");
    out.into_owned()
}

/// Names of our metrics in an expression; a histogram's series count as their family.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let family = |word: &str| {
        let known = |name: &str| FAMILIES.iter().any(|(known, _)| *known == name);
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        base.filter(|base| known(base)).unwrap_or(word).to_owned()
    };
    words.filter(|word| word.starts_with("tunnel_mesh_")).map(family).collect()
}

fn exists(names: &BTreeSet<String>, whence: &str) {
    for name in names {
        assert!(FAMILIES.iter().any(|(known, _)| known == name), "{whence} speaks of {name}, which doesn't exist");
    }
}

#[test]
fn alert_rules_are_right_and_each_fires_when_it_should_and_only_then() {
    let text = std::fs::read_to_string(rules()).unwrap();
    exists(&named(&text), "an alert rule");
    let checked = promtool(&["check", "rules", rules().to_str().unwrap()]);
    assert!(checked.contains("SUCCESS"), "{checked}");

    let cases = std::fs::read_to_string(root().join("tests/prometheus/alerts.yml")).unwrap();
    let alerts: Vec<&str> = text.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        for what in ["fires", "is silent"] {
            assert!(cases.contains(&format!("- name: {alert} {what}\n")), "no case in which {alert} {what}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alerts.yml");
    std::fs::write(&file, cases.replace("RULES", rules().to_str().unwrap())).unwrap();
    promtool(&["test", "rules", file.to_str().unwrap()]);
    // The cases could fail: with the first alert out of the way, they do.
    let broken = dir.path().join("broken.yml");
    std::fs::write(&broken, text.replacen("== 0", "== 2", 1)).unwrap();
    std::fs::write(&file, cases.replace("RULES", broken.to_str().unwrap())).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
    assert!(!output.status.success(), "a broken rule passes its cases");
}

#[test]
fn every_panel_of_the_dashboard_asks_for_what_exists() {
    let text = std::fs::read_to_string(root().join("packaging/grafana/tunnel-mesh.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panels share an id");
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    let mut asked = BTreeSet::new();
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{} asks nothing", panel["title"]);
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            let names = named(expr);
            assert!(!names.is_empty(), "{expr} names no metric");
            exists(&names, "the dashboard");
            asked.extend(names);
            // Variables as Grafana would put them in.
            let filled = expr.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$tenant", ".*");
            assert!(!filled.contains('$'), "{expr} has a variable that the dashboard doesn't declare");
            rules.push_str(&format!("      - record: panel:{}\n        expr: {}\n", rules.len(), Value::from(filled)));
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    variables.iter().for_each(|v| exists(&named(v["query"].as_str().unwrap()), "a variable of the dashboard"));
    assert!(asked.contains("tunnel_mesh_dropped_packets_total") && asked.contains("tunnel_mesh_mappings"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("panels.yml");
    std::fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()]);
}

#[test]
fn the_documentation_names_every_metric_and_no_other() {
    let text = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let names = named(&text);
    exists(&names, "docs/metrics.md");
    for (family, _) in FAMILIES {
        assert!(names.contains(*family), "docs/metrics.md doesn't speak of {family}");
    }
}
