//! Whether numbers grow, and how sure that is. Plain statistics over plain slices.

/// Windows that a watch is cut into. Nine steps between ten windows are enough for a sharp test, and six seconds of
/// a minute are long enough for most work to be done and its memory freed.
pub const WINDOWS: usize = 10;

/// The least that each window held. What is allocated and freed again goes up and down above it; what is kept
/// raises it. None when there are fewer than two values for a window.
pub fn floors(values: &[f64]) -> Option<[f64; WINDOWS]> {
    if values.len() < 2 * WINDOWS {
        return None;
    }
    let edge = |window: usize| window * values.len() / WINDOWS;
    Some(std::array::from_fn(|window| {
        let part = &values[edge(window)..edge(window + 1)];
        part.iter().copied().fold(f64::INFINITY, f64::min)
    }))
}

/// How the floors go from window to window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    steps: [f64; WINDOWS - 1],
}

impl Steps {
    pub fn of(floors: &[f64; WINDOWS]) -> Self {
        Self {
            steps: std::array::from_fn(|index| floors[index + 1] - floors[index]),
        }
    }

    pub fn total(&self) -> f64 {
        self.steps.iter().sum()
    }

    pub fn mean(&self) -> f64 {
        self.total() / self.steps.len() as f64
    }

    /// How many go up.
    pub fn rising(&self) -> usize {
        self.steps.iter().filter(|step| **step > 0.0).count()
    }

    pub fn never_falls(&self) -> bool {
        self.steps.iter().all(|step| *step >= 0.0)
    }

    /// What each third of the watch added.
    pub fn thirds(&self) -> [f64; 3] {
        let third = self.steps.len() / 3;
        std::array::from_fn(|index| self.steps[index * third..(index + 1) * third].iter().sum())
    }

    /// Student's t of the mean step: how many of its standard errors the mean is above zero. A walk without a
    /// direction has steps too, but their mean is near zero.
    pub fn t(&self) -> f64 {
        let (mean, count) = (self.mean(), self.steps.len() as f64);
        let squares: f64 = self.steps.iter().map(|step| (step - mean).powi(2)).sum();
        let error = (squares / (count - 1.0) / count).sqrt();
        if error <= mean.abs() * 1e-9 {
            return if mean > 0.0 { f64::MAX } else { 0.0 };
        }
        mean / error
    }

    /// The largest step but for the first, its place, and all of them but the first together.
    pub fn largest(&self) -> (usize, f64, f64) {
        let (mut largest, mut total) = ((1, f64::NEG_INFINITY), 0.0);
        for (index, step) in self.steps.iter().enumerate().skip(1) {
            total += step;
            if *step > largest.1 {
                largest = (index, *step);
            }
        }
        (largest.0, largest.1, total)
    }

    /// In how many further watches of this length growth comes to an end if the steps go on getting smaller as they
    /// did; none when they do not get smaller, or too little to tell from chance.
    pub fn watches_until_level(&self) -> Option<f64> {
        let count = self.steps.len() as f64;
        let middle = (count - 1.0) / 2.0;
        let (mut xx, mut xy) = (0.0, 0.0);
        for (index, step) in self.steps.iter().enumerate() {
            let x = index as f64 - middle;
            xx += x * x;
            xy += x * (step - self.mean());
        }
        let slope = xy / xx;
        let residuals = self.steps.iter().enumerate().map(|(index, step)| {
            let expected = self.mean() + slope * (index as f64 - middle);
            (step - expected).powi(2)
        });
        let error = (residuals.sum::<f64>() / (count - 2.0) / xx).sqrt();
        let falls = slope < -SURE_BEND * error && slope < -self.mean().abs() * 1e-6;
        if !falls {
            return None;
        }
        let zero_at = middle - self.mean() / slope;
        Some((zero_at - (count - 1.0)) / count)
    }
}

/// How much of what values gained on their way they lost again: 0 when they never fall.
pub fn falls(values: &[f64]) -> f64 {
    let (mut up, mut down) = (0.0, 0.0);
    for pair in values.windows(2) {
        let step = pair[1] - pair[0];
        if step > 0.0 { up += step } else { down -= step }
    }
    if up > 0.0 { down / up } else { 0.0 }
}

/// Standard errors from which on a bend is none of chance: one in a hundred.
const SURE_BEND: f64 = 3.0;

/// Chance that steps without a direction have a mean of this t or more: the upper tail of Student's distribution
/// with as many degrees of freedom as [`Steps`] has, by its finite series for even numbers.
pub fn chance(t: f64) -> f64 {
    const FREEDOM: f64 = (WINDOWS - 2) as f64;
    if t >= 1e6 {
        return 0.0;
    }
    let theta = (t / FREEDOM.sqrt()).atan();
    let (sin, cos2) = (theta.sin(), theta.cos().powi(2));
    let (mut term, mut sum) = (1.0, 1.0);
    let mut k = 2.0;
    while k < FREEDOM {
        term *= cos2 * (k - 1.0) / k;
        sum += term;
        k += 2.0;
    }
    ((1.0 - sin * sum) / 2.0).clamp(0.0, 1.0)
}

/// Theil and Sen's slope: the middle of the slopes between any two points, and the range of the middle four fifths.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slope {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
}

pub fn slope(x: &[f64], y: &[f64]) -> Slope {
    let mut slopes = Vec::with_capacity(x.len() * x.len() / 2);
    for (later, (x2, y2)) in x.iter().zip(y).enumerate() {
        for (x1, y1) in x.iter().zip(y).take(later) {
            if x2 > x1 {
                slopes.push((y2 - y1) / (x2 - x1));
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = (slopes.len().saturating_sub(1) as f64 * part).round() as usize;
        slopes.get(index).copied().unwrap_or(0.0)
    };
    Slope {
        low: at(0.1),
        middle: at(0.5),
        high: at(0.9),
    }
}

/// Mann and Kendall's tau: 1 when each value is above all earlier ones, 0 without a direction, -1 when falling.
pub fn tau(values: &[f64]) -> f64 {
    let (mut sum, mut pairs) = (0_i64, 0_i64);
    for (later, value) in values.iter().enumerate() {
        for earlier in &values[..later] {
            sum += i64::from(value > earlier) - i64::from(value < earlier);
            pairs += 1;
        }
    }
    if pairs == 0 {
        0.0
    } else {
        sum as f64 / pairs as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(values: impl Fn(f64) -> f64) -> Steps {
        let values: Vec<f64> = (0..100).map(|x| values(f64::from(x))).collect();
        Steps::of(&floors(&values).unwrap())
    }

    #[test]
    fn floors_see_what_is_kept_and_not_what_comes_and_goes() {
        let sawtooth = steps(|x| x.rem_euclid(5.0) * 1e6 + x);
        assert!((sawtooth.total() - 90.0).abs() < 1.0 && sawtooth.never_falls());
        assert_eq!(floors(&[1.0; 2 * WINDOWS - 1]), None);
    }

    #[test]
    fn a_line_is_certain_and_a_flat_one_is_nothing() {
        let line = steps(|x| 7.0 * x);
        assert_eq!((line.rising(), line.never_falls()), (9, true));
        assert!(line.t() > 1e6 && chance(line.t()) < 1e-12);
        assert_eq!(line.watches_until_level(), None);
        let flat = steps(|_| 5.0);
        assert_eq!((flat.t(), flat.total(), flat.rising()), (0.0, 0.0, 0));
    }

    #[test]
    fn growth_that_levels_off_is_seen_to_end() {
        let soon = steps(|x| 1e6 * (1.0 - (-x / 50.0).exp()));
        assert!(soon.watches_until_level().unwrap() < 0.5);
        let late = steps(|x| 1e6 * (1.0 - (-x / 300.0).exp()));
        assert!(late.watches_until_level().unwrap() > 1.5);
    }

    #[test]
    fn chances_are_those_of_the_tables() {
        // Quantiles of Student's distribution with 8 degrees of freedom.
        for (t, expected) in [
            (0.0, 0.5),
            (1.397, 0.1),
            (2.896, 0.01),
            (4.501, 0.001),
            (5.041, 0.0005),
        ] {
            assert!(
                (chance(t) - expected).abs() < expected * 0.01,
                "{t}: {}",
                chance(t)
            );
        }
        assert!(chance(f64::MAX) < 1e-12);
        assert!(chance(-3.0) > 0.99);
    }

    #[test]
    fn slopes_do_not_mind_outliers() {
        let x: Vec<f64> = (0..20).map(f64::from).collect();
        let mut y: Vec<f64> = x.iter().map(|x| 3.0 * x).collect();
        y[7] = 1e9;
        let slope = slope(&x, &y);
        assert!((slope.middle - 3.0).abs() < 1e-9 && slope.low <= 3.0 && slope.high >= 3.0);
        assert_eq!(super::slope(&[], &[]), Slope::default());
    }

    #[test]
    fn tau_is_one_for_a_rise_and_minus_one_for_a_fall() {
        assert_eq!(
            (tau(&[1.0, 2.0, 3.0]), tau(&[3.0, 2.0, 1.0]), tau(&[5.0])),
            (1.0, -1.0, 0.0)
        );
    }
}
