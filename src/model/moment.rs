//! A moment in time, as people and machines read it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment in UTC, to the second. In JSON it is text, as of RFC 3339: `2026-11-25T22:40:00Z`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Moment(u64);

impl Moment {
    /// Seconds since 1970.
    pub fn seconds(self) -> u64 {
        self.0
    }

    /// Seconds from this moment to a later one; 0 where it isn't later.
    pub fn seconds_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }

    /// As the system's clock has it.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }
}

const DAY: u64 = 24 * 3600;
/// Days in four hundred years, after which the calendar repeats.
const ERA: u64 = 146_097;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH: u64 = 719_468;

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Counted from 1 March, so that the leap day is a year's last.
        let days = self.0 / DAY + EPOCH;
        let (era, day) = (days / ERA, days % ERA);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} isn't a moment like 2026-11-25T22:40:00Z");
        let numbers: Vec<u64> = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        let &[year, month @ 1..=12, day @ 1..=31, hour, minute, second] = numbers.as_slice() else {
            return Err(wrong());
        };
        let (year, month) =
            if month <= 2 { (year.checked_sub(1).ok_or_else(wrong)?, month + 9) } else { (year, month - 3) };
        if year > 9999 || hour > 23 || minute > 59 || second > 60 {
            return Err(wrong());
        }
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
        let days = days.checked_sub(EPOCH).ok_or_else(wrong)?;
        Ok(Self(days * DAY + hour * 3600 + minute * 60 + second))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_as_everybody_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_646_400, "2026-11-25T22:40:00Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(Moment(seconds).to_string(), text);
        }
        for garbage in ["", "yesterday", "2026-13-01T00:00:00Z", "0000-01-01T00:00:00Z", "2026-11-25T24:00:00Z"] {
            assert!(Moment::try_from(garbage.to_owned()).is_err(), "{garbage}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in 0u64..200_000_000_000) {
            prop_assert_eq!(Moment::try_from(Moment(seconds).to_string()).unwrap(), Moment(seconds));
        }
    }
}
