//! Amounts as people read them.

/// A number, exact while it is short: `12345`, `1.2M`.
pub(super) fn count(number: u64) -> String {
    if number < 100_000 { number.to_string() } else { scaled(number as f64, "").replace(' ', "") }
}

/// Bytes: `123 B`, `1.2 kB`.
pub(super) fn bytes(number: u64) -> String {
    scaled(number as f64, "B")
}

/// Packets per second: `0.5/s`, `12/s`, `1.2k/s`.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 10.0 {
        let text = format!("{per_second:.1}");
        return format!("{}/s", text.strip_suffix(".0").unwrap_or(&text));
    }
    format!("{}/s", scaled(per_second, "").trim_end().replace(' ', ""))
}

/// Bits per second, of bytes per second: `800 bit/s`, `1.2 Mbit/s`.
pub(super) fn bits(bytes_per_second: f64) -> String {
    scaled(bytes_per_second * 8.0, "bit/s")
}

/// With a decimal prefix and at most one digit behind the point.
fn scaled(number: f64, unit: &str) -> String {
    let mut value = number;
    for prefix in ["", "k", "M", "G", "T", "P"] {
        if value < 999.5 || prefix == "P" {
            let text = if prefix.is_empty() || value >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") };
            return format!("{text} {prefix}{unit}").trim_end().to_owned();
        }
        value /= 1000.0;
    }
    String::new()
}

/// How long ago: `just now`, `12 s ago`, `3 min ago`, `5 h ago`, `2 d ago`.
pub(super) fn ago(seconds: u64) -> String {
    match seconds {
        0 => "just now".to_owned(),
        1..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_are_exact_and_large_ones_are_short() {
        assert_eq!([0, 99_999, 100_000, 1_234_567].map(count), ["0", "99999", "100k", "1.2M"]);
        assert_eq!([0, 999, 1000, 1_500_000].map(bytes), ["0 B", "999 B", "1.0 kB", "1.5 MB"]);
        assert_eq!(bytes(u64::MAX), "18447 PB");
        assert_eq!([0.0, 0.25, 3.0, 12.4, 999_999.0].map(rate), ["0/s", "0.2/s", "3/s", "12/s", "1.0M/s"]);
        assert_eq!([0.0, 125.0, 1.25e9].map(bits), ["0 bit/s", "1.0 kbit/s", "10.0 Gbit/s"]);
        assert_eq!(
            [0, 1, 119, 120, 7200, 200_000].map(ago),
            ["just now", "1 s ago", "119 s ago", "2 min ago", "2 h ago", "2 d ago"]
        );
    }
}
