//! How many seats each priority level gets: its share of the server's, and what it lends and borrows.
//!
//! Pure arithmetic over plain numbers (KEP-1040, "Dispatching" and "Seat borrowing").

use super::stats::Demand;

/// Targets below this count as this much, so that nothing is divided by zero.
const MIN_TARGET: f64 = 0.001;
const EPSILON: f64 = 1e-7;
/// Decay of the smoothed demand over one period; halves in five minutes.
const SMOOTHING: f64 = 0.977;

/// What a priority level says about its seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// `nominalConcurrencyShares`
    pub nominal: u32,
    /// `lendablePercent`
    pub lendable_percent: u32,
    /// `borrowingLimitPercent`; none: as much as the server has.
    pub borrowing_percent: Option<u32>,
}

/// The limits that follow from [`Shares`], in seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Its share.
    pub nominal: u32,
    /// What it never lends.
    pub lower: u32,
    /// The most that it has with what it borrows.
    pub upper: u32,
}

impl Limits {
    /// The limits of a level whose `shares` are of `sum`, of a server of `total` seats.
    pub fn new(shares: &Shares, total: u32, sum: f64) -> Self {
        let nominal =
            if sum > 0.0 { (f64::from(total) * f64::from(shares.nominal) / sum).ceil() } else { 0.0 };
        let part = |percent: u32| (nominal * f64::from(percent) / 100.0).round();
        let borrowed = shares.borrowing_percent.map_or(f64::from(total), part);
        let lent = part(shares.lendable_percent);
        let seats = |n: f64| n.clamp(0.0, f64::from(i32::MAX)) as u32;
        Self { nominal: seats(nominal), lower: seats(nominal - lent), upper: seats(nominal + borrowed) }
    }

    /// Where a new level starts: half of what it can lend is lent.
    pub fn initial(&self) -> u32 {
        self.nominal - (self.nominal - self.lower) / 2
    }
}

/// Demand of a level over the last periods.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Smoothed {
    /// The last period.
    pub last: Demand,
    /// Follows demand up at once and down slowly.
    pub smoothed: f64,
}

impl Smoothed {
    /// Takes in a stretch of time that was `periods` periods long (more than one where the server slept).
    pub fn update(&mut self, demand: Demand, periods: f64) {
        self.last.max = demand.max.round();
        if demand.seconds <= 0.0 {
            return;
        }
        self.last = Demand { max: self.last.max, ..demand };
        let envelope = demand.average + demand.deviation;
        let keep = SMOOTHING.powf(periods.max(1.0));
        self.smoothed = envelope.max(keep * self.smoothed + (1.0 - keep) * envelope);
    }
}

/// A level in the distribution of seats.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// It takes what it needs and is not limited.
    pub exempt: bool,
    /// Its limits.
    pub limits: Limits,
    /// Its demand.
    pub demand: Smoothed,
}

/// What [`distribute`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// The limit of each level until the next period.
    pub current: Vec<u32>,
    /// What each level would like.
    pub targets: Vec<f64>,
    /// The fraction of its target that a level gets.
    pub fair: f64,
}

/// Shares out the seats of all levels by demand.
pub fn distribute(levels: &[Level]) -> Distribution {
    let total: f64 = levels.iter().map(|l| f64::from(l.limits.nominal)).sum();
    // What each must get: what it used, within its own share.
    let floor = |level: &Level| {
        let (lower, used) = (f64::from(level.limits.lower), level.demand.last.max);
        if level.exempt { lower.max(used) } else { lower.max(used.min(f64::from(level.limits.nominal))) }
    };
    let exempt: f64 = levels.iter().filter(|l| l.exempt).map(floor).sum();
    let limited: Vec<&Level> = levels.iter().filter(|l| !l.exempt).collect();
    let lower: f64 = limited.iter().map(|l| f64::from(l.limits.lower)).sum();
    let floors: f64 = limited.iter().map(|l| floor(l)).sum();
    let left = total - exempt;
    let items: Vec<Item> = limited
        .iter()
        .map(|l| Item {
            low: floor(l),
            high: f64::from(l.limits.upper),
            target: floor(l).max(l.demand.smoothed),
        })
        .collect();
    let (shares, fair): (Vec<f64>, f64) = if left <= lower {
        (limited.iter().map(|l| f64::from(l.limits.lower)).collect(), 0.0)
    } else if left <= floors {
        let part = (left - lower) / (floors - lower);
        let between = |l: &&Level| {
            let low = f64::from(l.limits.lower);
            low + (floor(l) - low) * part
        };
        (limited.iter().map(between).collect(), 0.0)
    } else {
        proportional(total, &items)
    };
    let (mut at, mut current, mut targets) = (0, Vec::new(), Vec::new());
    for level in levels {
        if level.exempt {
            current.push(floor(level).round() as u32);
            targets.push(floor(level));
        } else {
            current.push(shares[at].round() as u32);
            targets.push(items[at].target);
            at += 1;
        }
    }
    Distribution { current, targets, fair }
}

#[derive(Clone, Copy, Debug)]
struct Item {
    low: f64,
    high: f64,
    target: f64,
}

impl Item {
    fn target(&self) -> f64 {
        self.target.max(MIN_TARGET)
    }

    fn at(&self, fair: f64) -> f64 {
        (fair * self.target()).clamp(self.low, self.high.max(self.low))
    }
}

/// The one fraction `fair` for which `fair · target`, kept between `low` and `high`, sums to `wanted`; where
/// the bounds allow no such sum, the nearest.
fn proportional(wanted: f64, items: &[Item]) -> (Vec<f64>, f64) {
    let sum = |fair: f64| items.iter().map(|i| i.at(fair)).sum::<f64>();
    // The sum grows with `fair` in straight lines that bend where an item meets a bound.
    let mut bends: Vec<f64> = items.iter().flat_map(|i| [i.low / i.target(), i.high / i.target()]).collect();
    bends.sort_by(f64::total_cmp);
    let after = bends.partition_point(|bend| sum(*bend) + EPSILON < wanted);
    let fair = match (after.checked_sub(1).and_then(|at| bends.get(at)), bends.get(after)) {
        (None, Some(first)) => *first,
        (Some(below), Some(above)) => {
            let slope: f64 = items
                .iter()
                .filter(|i| i.low / i.target() <= *below && i.high / i.target() >= *above)
                .map(Item::target)
                .sum();
            if slope > 0.0 { (below + (wanted - sum(*below)) / slope).min(*above) } else { *above }
        }
        (last, None) => last.copied().unwrap_or(0.0),
    };
    (items.iter().map(|i| i.at(fair)).collect(), fair)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(nominal: u32, lower: u32, upper: u32, used: f64, smoothed: f64) -> Level {
        let last = Demand { max: used, average: used, seconds: 10.0, deviation: 0.0 };
        Level { exempt: false, limits: Limits { nominal, lower, upper }, demand: Smoothed { last, smoothed } }
    }

    #[test]
    fn shares_become_limits() {
        let of = |nominal, lendable_percent, borrowing_percent| Shares {
            nominal,
            lendable_percent,
            borrowing_percent,
        };
        // The bootstrap configuration of a server with 600 seats: 245 shares.
        for (shares, want) in [
            (of(5, 0, None), (13, 13, 613)),
            (of(30, 33, None), (74, 50, 674)),
            (of(40, 25, None), (98, 73, 698)),
            (of(10, 0, None), (25, 25, 625)),
            (of(100, 90, None), (245, 24, 845)),
            (of(20, 50, Some(0)), (49, 24, 49)),
            (of(0, 0, None), (0, 0, 600)),
        ] {
            let limits = Limits::new(&shares, 600, 245.0);
            assert_eq!((limits.nominal, limits.lower, limits.upper), want, "{shares:?}");
        }
        assert_eq!(Limits::new(&of(0, 0, None), 600, 0.0).nominal, 0);
        assert_eq!(Limits { nominal: 245, lower: 24, upper: 845 }.initial(), 135);
    }

    #[test]
    fn seats_follow_demand() {
        // Nobody wants anything: each keeps its lower bound at least, and all seats are given out.
        let idle = [level(100, 50, 300, 0.0, 0.0), level(200, 20, 500, 0.0, 0.0)];
        let out = distribute(&idle);
        assert_eq!(out.current.iter().sum::<u32>(), 300);
        assert!(out.current[0] >= 50 && out.current[1] >= 20, "{out:?}");
        // One wants more than its share, the other lends what it does not use.
        let busy = [level(100, 50, 300, 400.0, 400.0), level(200, 20, 500, 0.0, 0.0)];
        assert_eq!(distribute(&busy).current, [280, 20]);
        // It gets its own share back when it wants it.
        let both = [level(100, 50, 300, 400.0, 400.0), level(200, 20, 500, 400.0, 400.0)];
        assert_eq!(distribute(&both).current, [100, 200]);
        // The upper bound holds.
        let capped = [level(100, 50, 150, 400.0, 400.0), level(200, 20, 500, 0.0, 0.0)];
        assert_eq!(distribute(&capped).current, [150, 150]);
        assert!(distribute(&[]).current.is_empty());
    }

    #[test]
    fn exempt_levels_come_first() {
        let mut exempt = level(0, 0, 300, 280.0, 0.0);
        exempt.exempt = true;
        let others = [exempt, level(100, 50, 300, 100.0, 100.0), level(200, 20, 500, 200.0, 200.0)];
        // 20 seats are left, fewer than the lower bounds: those hold all the same.
        assert_eq!(distribute(&others).current, [280, 50, 20]);
        exempt.demand.last.max = 100.0;
        let others = [exempt, others[1], others[2]];
        // 200 are left: between the lower bounds (70) and what is used (300).
        let out = distribute(&others);
        assert_eq!(out.current[0], 100);
        assert_eq!(out.current[1] + out.current[2], 200);
    }

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let mut demand = Smoothed::default();
        demand.update(Demand { seconds: 10.0, average: 8.0, deviation: 2.0, max: 12.4 }, 1.0);
        assert_eq!((demand.smoothed, demand.last.max), (10.0, 12.0));
        let mut many = demand;
        for _ in 0..30 {
            demand.update(Demand { seconds: 10.0, ..Demand::default() }, 1.0);
        }
        assert!((demand.smoothed - 5.0).abs() < 0.1, "{demand:?}");
        many.update(Demand { seconds: 300.0, ..Demand::default() }, 30.0);
        assert!((demand.smoothed - many.smoothed).abs() < 1e-9);
    }
}
