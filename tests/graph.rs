//! `graph`: the mesh as Mermaid, DOT and SVG, from the files alone and with the state of a host.

#![allow(clippy::unwrap_used, missing_docs)]

mod safety;
mod world;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use world::*;

const TWO: &str = "\
version: 1
nodes: {host0: 172.16.1.100, host1: 172.16.1.101, host2: [172.16.1.102, 'fd00::102']}
tunnels: {vxlan0: {kind: vxlan, create: true}}
tenants:
  red: {id: 10000, bridge: br-red}
  wire7:
    id: 7
    members: {host0: {interface: veth-a}, host1: {interface: veth-b}}
";

fn offline(topology: &Path, arguments: &[&str]) -> String {
    let output = Command::new(binary())
        .args(["graph", "--declared"])
        .args(arguments)
        .env("TUNNEL_MESH_TOPOLOGY", topology)
        .env_remove("TUNNEL_MESH_NODE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && err.is_empty(), "{arguments:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    std::fs::write(&file, text).unwrap();
    (directory, file)
}

/// Twenty hosts, five tenants.
fn large() -> String {
    let mut text = String::from("version: 1\nnodes:\n");
    (0..20).for_each(|n| text.push_str(&format!("  host{n}: 10.0.0.{}\n", n + 1)));
    text.push_str("tunnels: {vxlan0: {kind: vxlan}}\ntenants:\n");
    for (t, name) in ["red", "blue", "acme", "lab", "storage"].iter().enumerate() {
        let members: Vec<String> = (0..20).filter(|n| t < 2 || n % (t + 1) == 0).map(|n| format!("host{n}")).collect();
        text.push_str(&format!(
            "  {name}: {{id: {}, bridge: br-{name}, members: [{}]}}\n",
            100 + t,
            members.join(", ")
        ));
    }
    text
}

/// Elements are closed in order, and attributes are in quotes: enough XML for what is drawn here.
fn well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("no end of <{tag}"));
        assert!(!text.contains('>') && tag.matches('"').count() % 2 == 0, "<{tag}>{text}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (false, false) => open.push(name),
            (false, true) => {}
        }
        for entity in text.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|e| entity.starts_with(e)), "&{entity}");
        }
    }
    assert!(open.is_empty(), "{open:?}");
    parsed(svg);
}

/// What a program makes of a text; it must succeed, and say nothing beside.
fn through(program: &str, arguments: &[&str], text: &str) -> String {
    let mut command = Command::new(program);
    let pipes = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    let mut input = child.stdin.take().unwrap();
    // It reads everything before it writes.
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && err.is_empty(), "{program}: {err}\n{text}");
    String::from_utf8(output.stdout).unwrap()
}

/// By an XML parser, which gives back all text.
fn parsed(svg: &str) -> String {
    let read = "import sys, xml.etree.ElementTree as e; sys.stdout.reconfigure(encoding='utf-8'); \
                print('\\n'.join(e.fromstring(sys.stdin.buffer.read()).itertext()))";
    through("python3", &["-c", read], svg)
}

/// By Graphviz, as a picture.
fn drawn(dot: &str) -> String {
    parsed(&through("dot", &["-Tsvg"], dot))
}

#[test]
fn a_small_mesh_is_drawn_link_by_link() {
    let (_directory, file) = written(TWO);
    insta::assert_snapshot!("graph_mermaid", offline(&file, &[]));
    insta::assert_snapshot!("graph_dot", offline(&file, &["--format", "dot"]));
    let svg = offline(&file, &["--format", "svg"]);
    well_formed(&svg);
    for part in
        ["3 hosts, 2 tenants, 4 links, as declared", "id 10000 over vxlan0", "bridge br-red", "veth-a", "fd00::102"]
    {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    assert_eq!(svg.matches("<path").count(), 4);
    // A tenant that is named as a colour has that colour; one alone can be asked for.
    assert!(svg.contains("#c62828"));
    let one = offline(&file, &["--format", "svg", "--tenant", "wire7"]);
    assert!(one.contains("2 hosts, 1 tenant, 1 link") && !one.contains(">red<"), "{one}");
}

#[test]
fn a_large_mesh_has_a_hub_for_each_tenant_and_every_track_on_the_map() {
    let (_directory, file) = written(&large());
    let links: usize = [20, 20, 7, 5, 4].iter().map(|n| n * (n - 1) / 2).sum();
    let svg = offline(&file, &["--format", "svg"]);
    well_formed(&svg);
    assert!(svg.contains(&format!("20 hosts, 5 tenants, {links} links")));
    assert_eq!(svg.matches("<path").count(), links);
    // host2 is above host10.
    assert!(svg.find(">host2<").unwrap() < svg.find(">host10<").unwrap());
    let mermaid = offline(&file, &[]);
    // Mermaid draws 500 lines at most.
    assert!(mermaid.matches(" --- ").count() < 100 && mermaid.contains("t0((\""), "{mermaid}");
    assert!(offline(&file, &["--format", "dot"]).matches(" -- ").count() < 100);
}

#[test]
fn names_cannot_break_out_of_a_picture() {
    let text = "version: 1\nnodes: {'a\"<b>&': 10.0.0.1, 'b]];--': 10.0.0.2}\ntunnels: {v0: {kind: vxlan}}\n\
                tenants: {'t\"]</text>': {id: 1, bridge: br}}\n";
    let text = text.replace("</text>", "<text>");
    let (_directory, file) = written(&text);
    well_formed(&offline(&file, &["--format", "svg"]));
    let mermaid = offline(&file, &[]);
    assert!(!mermaid.contains("a\"<") && !mermaid.contains("]];--"), "{mermaid}");
    assert!(offline(&file, &["--format", "dot"]).contains("a\\\"<b>&"));
}

#[test]
fn graphviz_draws_the_published_examples() {
    let examples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/topologies")).unwrap();
    let mut count = 0;
    for example in examples.map(|e| e.unwrap().path()) {
        let dot = offline(&example, &["--format", "dot"]);
        let text = drawn(&dot);
        let nodes = dot.lines().filter(|l| l.starts_with("  h")).filter_map(|l| l.split("label=\"").nth(1));
        let names: Vec<&str> = nodes.filter_map(|label| label.split(['\\', '"']).next()).collect();
        assert!(names.len() > 1, "{}: {dot}", example.display());
        for name in names {
            assert!(text.lines().any(|line| line == name), "{}: {name}: {text}", example.display());
        }
        well_formed(&offline(&example, &["--format", "svg"]));
        count += 1;
    }
    assert!(count >= 5, "{count} examples");
}

#[test]
fn graphviz_and_xml_give_nasty_names_back_as_they_are() {
    let hosts = ["a\"<b>&", "b]];--", "back\\slash\\n", "ünï→コード", "{x|y}", "<b>", "graph", "h0", "%"];
    let nodes = hosts.iter().enumerate().map(|(n, name)| format!("  '{name}': 10.0.0.{}\n", n + 1));
    let text = format!(
        "version: 1\nnodes:\n{}tunnels: {{v0: {{kind: vxlan}}}}\ntenants:\n  'red\"\\G<&>→': {{id: 1, bridge: br, members: [{}]}}\n  \
         'hub\"\\G<&>→': {{id: 2, bridge: br2}}\n",
        nodes.collect::<String>(),
        hosts[..2].iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
    );
    let (_directory, file) = written(&text);
    let (graphviz, own) = (drawn(&offline(&file, &["--format", "dot"])), parsed(&offline(&file, &["--format", "svg"])));
    for name in hosts.iter().chain(&["red\"\\G<&>→", "hub\"\\G<&>→"]) {
        for text in [&graphviz, &own] {
            assert!(text.lines().any(|line| line == *name), "{name}: {text}");
        }
    }
}

#[test]
fn what_is_not_in_force_on_this_host_is_marked() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    host.write("mesh.yaml", TWO);
    // Nothing is applied yet: nobody looked.
    assert!(host.expect(0, &["graph", "--format", "svg"]).contains("as declared"));
    host.apply();
    let svg = host.expect(0, &["graph", "--format", "svg"]);
    well_formed(&svg);
    let wire = "wire7: host0 – host1 (veth-a, veth-b), pending";
    assert!(svg.contains("as seen on host0") && svg.contains(wire), "{svg}");
    assert!(svg.contains("veth-a doesn't exist") || svg.contains("veth-a doesn&#39;t exist"), "{svg}");
    assert!(host.expect(0, &["graph"]).contains("-.-|\"wire7 veth-a – veth-b, pending\"|"));
    assert!(host.expect(0, &["graph", "--format", "dot"]).contains("style=dashed"));
    host.netns.cmd("ip link add veth-a type veth peer name veth-ap");
    host.apply();
    let svg = host.expect(0, &["graph", "--format", "svg"]);
    assert!(svg.contains("Every mapping of the framed host is in force"), "{svg}");
    // A tunnel that can't be used breaks all that goes through it.
    host.netns.cmd("ip link del vxlan0");
    host.netns.cmd("ip link add vxlan0 type vxlan id 5 dstport 4789 local 172.16.1.100");
    let svg = host.expect(0, &["graph", "--format", "svg"]);
    assert_eq!(svg.matches(", broken: tunnel vxlan0").count(), 2 * 3, "a tooltip and a line for each: {svg}");
}

/// One wire to host1 for each of these, beside red.
fn wires(names: &[String]) -> String {
    let wire = |(id, name): (usize, &String)| {
        format!(
            "  {name}: {{id: {id}, members: {{host0: {{interface: veth-{name}}}, host1: {{interface: veth-{name}}}}}}}\n"
        )
    };
    let wires: String = names.iter().enumerate().map(wire).collect();
    format!("{}  red: {{id: 10000, bridge: br-red}}\n{wires}", &TWO[..TWO.find("  red:").unwrap()])
}

#[test]
fn each_state_has_its_mark_in_each_form() {
    let underlay = Underlay::new();
    let host = underlay.host(0);
    let names: Vec<String> =
        ["a", "b", "c"].map(str::to_owned).into_iter().chain((0..10).map(|n| format!("d{n}"))).collect();
    for name in &names {
        host.netns.cmd(&format!("ip link add veth-{name} type veth peer name veth-{name}p"));
    }
    host.write("mesh.yaml", &wires(&names));
    host.apply();
    // b waits for its interface; c has lost its entry; the others, and the ports of red, are gone from the files, which is too much
    // at once.
    host.netns.cmd("ip link del veth-b");
    let index = host.ifindex("veth-c").to_ne_bytes();
    safety::map_write(&host, "if2tunkey", "delete", &index, None);
    let less = wires(&names[..3]);
    host.write("mesh.yaml", &less.replace("  red: {id: 10000, bridge: br-red}\n", ""));
    let held = host.run(&["apply", "--format", "json"]);
    assert_eq!(held.status.code(), Some(3), "{}", String::from_utf8_lossy(&held.stderr));
    safety::map_write(&host, "if2tunkey", "delete", &index, None);

    let mermaid = host.expect(0, &["graph"]);
    for label in ["a veth-a – veth-a", "b veth-b – veth-b, pending", "c veth-c – veth-c, broken", "d7 veth-d7, held"]
    {
        let line = if label.contains(", ") { "-.-" } else { "---" };
        assert!(mermaid.contains(&format!("h0 {line}|\"{label}\"| h1")), "{label}: {mermaid}");
    }
    assert_eq!(mermaid.matches("|\"red, held\"|").count(), 2, "{mermaid}");
    let dot = host.expect(0, &["graph", "--format", "dot"]);
    for (label, style) in [
        ("a veth-a – veth-a", ""),
        ("b veth-b – veth-b, pending", ", style=dashed"),
        ("c veth-c – veth-c, broken", ", style=dashed, penwidth=4"),
        ("d7 veth-d7, held", ", style=dotted"),
        ("red, held", ", style=dotted"),
    ] {
        assert!(dot.contains(&format!("label=\"{label}\"{style}];")), "{label}: {dot}");
        assert!(drawn(&dot).contains(label), "{label}: {dot}");
    }
    let svg = host.expect(0, &["graph", "--format", "svg"]);
    well_formed(&svg);
    let text = parsed(&svg);
    for told in [
        "b: host0 – host1 (veth-b, veth-b), pending: ",
        "c: host0 – host1 (veth-c, veth-c), broken: ",
        "d7: host0 – host1 (veth-d7), held: removed by the files; ",
        "red: host0 – host2, held: ",
    ] {
        // On its track, and below in words.
        assert_eq!(text.lines().filter(|l| l.starts_with(told)).count(), 2, "{told}: {text}");
    }
    let signs: Vec<usize> = ["…", "×", "="].iter().map(|s| text.lines().filter(|l| l == s).count()).collect();
    assert_eq!(signs, [2, 2, 2 * 12], "on the track and in front of the words: {text}");
    for dashes in ["7 5", "12 3 2 3", "2 4"] {
        assert!(svg.contains(&format!("stroke-dasharray=\"{dashes}\"")), "{dashes}: {svg}");
    }
    // What is held is no part of what the files declare.
    assert!(!host.expect(0, &["graph", "--declared"]).contains("veth-d7"));
}
