//! Puts what a benchmark found between its markers in docs/benchmarks.md.

/// Replaces what stands between `<!-- NAME -->` and `<!-- end of NAME -->`, with a line about the machine on top.
pub fn store(name: &str, markdown: &str) {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(&begin).expect("docs/benchmarks.md has lost its markers");
    let (_, tail) = rest.split_once(&end).expect("docs/benchmarks.md has lost its markers");
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let version = release.split('-').next().unwrap_or(&release);
    let machine = format!("Linux {version}, {} CPUs.", std::thread::available_parallelism().unwrap());
    std::fs::write(path, format!("{head}{begin}\n{machine}\n\n{markdown}\n{end}{tail}")).unwrap();
}
