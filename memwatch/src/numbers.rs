//! Numbers as bytes: seven bits each, the lowest first, so that small ones are short.

/// Bytes that say something impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bad(pub &'static str);

pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Numbers near zero on both sides; any two `u64` have a difference that fits, modulo 2 to the 64.
pub(crate) fn put_difference(out: &mut Vec<u8>, now: u64, before: u64) {
    let difference = now.wrapping_sub(before) as i64;
    put(out, ((difference << 1) ^ (difference >> 63)) as u64);
}

/// Nothing, or the value plus one.
pub(crate) fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    put(out, value.map_or(0, |value| value.saturating_add(1)));
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes that are yet to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub const fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub fn number(&mut self) -> Result<u64, Bad> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Bad("a number is too long"))
    }

    pub fn byte(&mut self) -> Result<u8, Bad> {
        let (first, rest) = self.rest.split_first().ok_or(Bad("it ends within a number"))?;
        self.rest = rest;
        Ok(*first)
    }

    pub fn small(&mut self) -> Result<u32, Bad> {
        u32::try_from(self.number()?).map_err(|_| Bad("a number is too large"))
    }

    /// A number that was written against `before`.
    pub fn difference(&mut self, before: u64) -> Result<u64, Bad> {
        let coded = self.number()?;
        let difference = (coded >> 1) ^ (coded & 1).wrapping_neg();
        Ok(before.wrapping_add(difference))
    }

    pub fn option(&mut self) -> Result<Option<u64>, Bad> {
        Ok(self.number()?.checked_sub(1))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Bad> {
        let length = self.number()?;
        let length = usize::try_from(length).map_err(|_| Bad("a length is too large"))?;
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Bad("a length goes beyond the end"))?;
        self.rest = rest;
        Ok(bytes)
    }

    /// How many items follow. Each takes at least one byte, so more than are left is a lie.
    pub fn count(&mut self) -> Result<usize, Bad> {
        let count = self.number()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.rest.len() => Ok(count),
            _ => Err(Bad("a count goes beyond the end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        assert!(Input::new(&[0xff; 10]).number().is_err());
        let mut most = Vec::new();
        put(&mut most, u64::MAX);
        assert_eq!(most.len(), 10);
        most[9] = 2;
        assert!(Input::new(&most).number().is_err());
        assert!(Input::new(&[0x80]).number().is_err());
        assert!(Input::new(&[5, 1]).bytes().is_err());
        assert!(Input::new(&[5, 1]).count().is_err());
    }

    proptest! {
        #[test]
        fn numbers_come_back(a in any::<u64>(), b in any::<u64>(), small in 0..300_u64, c in prop::option::of(0..u64::MAX)) {
            let mut out = Vec::new();
            put(&mut out, a);
            put_difference(&mut out, a, b);
            put_difference(&mut out, small, a);
            put_option(&mut out, c);
            put_bytes(&mut out, &b.to_le_bytes());
            let mut input = Input::new(&out);
            prop_assert_eq!(input.number(), Ok(a));
            prop_assert_eq!(input.difference(b), Ok(a));
            prop_assert_eq!(input.difference(a), Ok(small));
            prop_assert_eq!(input.option(), Ok(c));
            prop_assert_eq!(input.bytes(), Ok(&b.to_le_bytes()[..]));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut input = Input::new(&bytes);
            while !input.is_empty() {
                if input.number().is_err() {
                    break;
                }
            }
        }
    }
}
