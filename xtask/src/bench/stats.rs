//! Middle and spread of some measurements.

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(
            Summary::of([9.0, 1.0, 2.0]),
            Some(Summary {
                median: 2.0,
                min: 1.0,
                max: 9.0
            })
        );
        assert_eq!(
            Summary::of([4.0, 1.0, 2.0, 9.0]),
            Some(Summary {
                median: 3.0,
                min: 1.0,
                max: 9.0
            })
        );
        assert_eq!(
            Summary::of([5.0]),
            Some(Summary {
                median: 5.0,
                min: 5.0,
                max: 5.0
            })
        );
        assert_eq!(Summary::of([]), None);
    }
}
