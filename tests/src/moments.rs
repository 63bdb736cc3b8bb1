//! Moments at which tests disturb what they test.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small generator with a seed (xorshift), so that a failure can be seen again: it is printed, and
/// `WEIR_TEST_SEED` sets it.
#[derive(Debug)]
pub struct Moments(u64);

impl Moments {
    /// The same moments in every execution of the test.
    pub fn seeded(label: &str) -> Self {
        Self::with(label, 20_261_122)
    }

    /// Other moments in every execution of the test.
    pub fn random(label: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::with(label, u64::from(since.subsec_nanos()))
    }

    fn with(label: &str, default: u64) -> Self {
        let seed = std::env::var("WEIR_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(default);
        println!("{label}: WEIR_TEST_SEED={seed}");
        Self::of_seed(label, seed)
    }

    /// Whatever `WEIR_TEST_SEED` says.
    pub fn of_seed(label: &str, seed: u64) -> Self {
        let mixed = label
            .bytes()
            .fold(seed, |seed, byte| seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        Self(mixed | 1)
    }

    /// Uniform in `[0, bound)`.
    pub fn below(&mut self, bound: Duration) -> Duration {
        bound.mul_f64(self.fraction())
    }

    /// One of these, each as likely as the others.
    pub fn one_of<'all, T>(&mut self, all: &'all [T]) -> &'all T {
        let index = (self.fraction() * all.len() as f64) as usize;
        all.get(index).expect("there is something to choose from")
    }

    /// Uniform in `[0, 1)`.
    pub fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}
