//! How fast a site grows: its bytes in use at the last ticks in which it changed.

use std::collections::VecDeque;

/// Ticks over which growth is measured. Half a minute at the usual interval: long enough that one burst does
/// not look like a trend, short enough to see a change while watching.
pub const GROWTH_TICKS: usize = 30;

/// The times of the last ticks.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    times_ns: VecDeque<u64>,
}

impl Clock {
    pub fn tick(&mut self, at_ns: u64) {
        if self.times_ns.len() > GROWTH_TICKS {
            self.times_ns.pop_front();
        }
        self.times_ns.push_back(at_ns);
    }

    /// From the oldest kept tick to the newest; none before the second tick.
    pub fn window(&self) -> Option<Window> {
        let (start_ns, end_ns) = (*self.times_ns.front()?, *self.times_ns.back()?);
        (end_ns > start_ns).then_some(Window { start_ns, end_ns })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start_ns: u64,
    pub end_ns: u64,
}

/// Bytes in use after each tick in which a site changed. A tick costs only the sites that changed in it.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<(u64, u64)>,
}

impl History {
    /// `window_start_ns` lets go of what is no longer needed: all but one point at or before it.
    pub fn push(&mut self, at_ns: u64, inuse_bytes: u64, window_start_ns: u64) {
        self.points.push_back((at_ns, inuse_bytes));
        while self.points.get(1).is_some_and(|(at, _)| *at <= window_start_ns) {
            self.points.pop_front();
        }
    }

    /// Bytes in use at `at_ns`; 0 before the site's first allocation.
    fn at(&self, at_ns: u64) -> u64 {
        self.points
            .iter()
            .rev()
            .find(|(at, _)| *at <= at_ns)
            .map_or(0, |(_, bytes)| *bytes)
    }

    /// Bytes per second over the window.
    pub fn growth(&self, window: Window) -> f64 {
        let change = self.at(window.end_ns) as f64 - self.at(window.start_ns) as f64;
        change / ((window.end_ns - window.start_ns) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rounded(growth: f64) -> i64 {
        growth.round() as i64
    }

    #[test]
    fn there_is_no_window_before_the_second_tick() {
        let mut clock = Clock::default();
        assert_eq!(clock.window(), None);
        clock.tick(5);
        assert_eq!(clock.window(), None);
        clock.tick(7);
        assert_eq!(
            clock.window(),
            Some(Window {
                start_ns: 5,
                end_ns: 7
            })
        );
    }

    #[test]
    fn the_window_spans_the_last_ticks_only() {
        let mut clock = Clock::default();
        for tick in 0..100 {
            clock.tick(tick * SECOND);
        }
        assert_eq!(
            clock.window(),
            Some(Window {
                start_ns: 69 * SECOND,
                end_ns: 99 * SECOND
            })
        );
    }

    #[test]
    fn a_site_that_does_not_change_does_not_grow_once_the_window_has_passed() {
        let mut history = History::default();
        history.push(2 * SECOND, 1000, 0);
        let grow = |start, end| {
            history.growth(Window {
                start_ns: start * SECOND,
                end_ns: end * SECOND,
            })
        };
        assert_eq!(rounded(grow(0, 10)), 100);
        assert_eq!(rounded(grow(2, 10)), 0);
        assert_eq!(rounded(grow(5, 10)), 0);
    }

    #[test]
    fn old_points_are_let_go_but_the_value_at_the_window_start_is_kept() {
        let mut history = History::default();
        for tick in 1..=1000_u64 {
            history.push(tick * SECOND, tick * 10, tick.saturating_sub(30) * SECOND);
        }
        assert_eq!(history.points.len(), 31);
        let window = Window {
            start_ns: 970 * SECOND,
            end_ns: 1000 * SECOND,
        };
        assert_eq!(rounded(history.growth(window)), 10);
    }

    #[test]
    fn shrinking_is_negative_growth() {
        let mut history = History::default();
        history.push(SECOND, 500, 0);
        history.push(3 * SECOND, 100, 0);
        let window = Window {
            start_ns: SECOND,
            end_ns: 3 * SECOND,
        };
        assert_eq!(rounded(history.growth(window)), -200);
    }
}
