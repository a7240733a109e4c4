//! The search against all that could be: small random clusters, every assignment of devices tried, and each of
//! them judged by the rules alone.

use serde_json::{Value, json};

use super::{DRIVER, Fixture, claim, device, request, slice};

/// xorshift64: replayable from the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug)]
struct Thing {
    name: String,
    /// An attribute, if it has it.
    colour: Option<i64>,
    tainted: bool,
    /// What it takes of the pool's 4.
    counter: i64,
    /// Shared: its capacity.
    capacity: Option<i64>,
    /// In use: by one claim, or so much of it.
    used: Option<i64>,
}

#[derive(Clone, Debug)]
struct Wish {
    claim: usize,
    count: usize,
    colour: Option<i64>,
    tolerates: bool,
    admin: bool,
    amount: Option<i64>,
}

#[derive(Debug)]
struct Problem {
    things: Vec<Thing>,
    wishes: Vec<Wish>,
    /// Per claim: all alike (`Some(false)`) or all different.
    constraints: Vec<Option<bool>>,
}

const COUNTER: i64 = 4;

impl Problem {
    fn new(random: &mut Random) -> Self {
        let things = (0..2 + random.below(4)).map(|i| {
            let capacity = random.one_in(4).then(|| 2 + random.below(3) as i64);
            Thing {
                name: format!("d{i}"),
                colour: (!random.one_in(5)).then(|| random.below(3) as i64),
                tainted: random.one_in(8),
                counter: if random.one_in(2) { random.below(4) as i64 } else { 0 },
                used: random.one_in(6).then(|| if capacity.is_some() { random.below(3) as i64 } else { 0 }),
                capacity,
            }
        });
        let things = things.collect();
        let claims = 1 + random.below(2) as usize;
        let mut wishes = Vec::new();
        for claim in 0..claims {
            for _ in 0..1 + random.below(2) {
                wishes.push(Wish {
                    claim,
                    count: 1 + random.below(2) as usize,
                    colour: random.one_in(3).then(|| random.below(3) as i64),
                    tolerates: random.one_in(3),
                    admin: random.one_in(6),
                    amount: random.one_in(4).then(|| 1 + random.below(3) as i64),
                });
            }
        }
        let constraints = (0..claims).map(|_| random.one_in(3).then(|| random.one_in(2))).collect();
        Self { things, wishes, constraints }
    }

    fn fixture(&self) -> (Fixture, Vec<Value>) {
        let of = json!({"spec": {"pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}}});
        let devices: Value = self
            .things
            .iter()
            .map(|t| {
                let mut extra = json!({});
                if let Some(colour) = t.colour {
                    extra["attributes"]["colour"]["int"] = colour.into();
                }
                if t.tainted {
                    extra["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
                }
                if t.counter > 0 {
                    extra["consumesCounters"] =
                        json!([{"counterSet": "s", "counters": {"c": {"value": t.counter.to_string()}}}]);
                }
                if let Some(capacity) = t.capacity {
                    extra["allowMultipleAllocations"] = true.into();
                    extra["capacity"]["memory"]["value"] = capacity.to_string().into();
                }
                device(&t.name, extra)
            })
            .collect();
        let mut counters = slice("a", Value::Null, of.clone());
        counters["spec"]["sharedCounters"] =
            json!([{"name": "s", "counters": {"c": {"value": COUNTER.to_string()}}}]);
        let mut fixture = Fixture::new(&[counters, slice("b", devices, of)]);
        for t in &self.things {
            if let Some(used) = t.used {
                let share = t.capacity.map(|_| used.to_string());
                fixture.take("p", &t.name, share.as_deref());
            }
        }
        let claims = (0..self.constraints.len()).map(|c| {
            let requests: Value = self
                .wishes
                .iter()
                .enumerate()
                .filter(|(_, w)| w.claim == c)
                .map(|(i, w)| {
                    let mut extra = json!({"count": w.count});
                    if let Some(colour) = w.colour {
                        let expression = format!(
                            r#"has(device.attributes["{DRIVER}"].colour) && device.attributes["{DRIVER}"].colour == {colour}"#
                        );
                        extra["selectors"] = json!([{"cel": {"expression": expression}}]);
                    }
                    if w.tolerates {
                        extra["tolerations"] = json!([{"operator": "Exists"}]);
                    }
                    if w.admin {
                        extra["adminAccess"] = true.into();
                    }
                    if let Some(amount) = w.amount {
                        extra["capacity"]["requests"]["memory"] = amount.to_string().into();
                    }
                    request(&format!("r{i}"), extra)
                })
                .collect();
            let attribute = format!("{DRIVER}/colour");
            let constraint = match self.constraints[c] {
                None => json!({}),
                Some(false) => json!({"constraints": [{"matchAttribute": attribute}]}),
                Some(true) => json!({"constraints": [{"distinctAttribute": attribute}]}),
            };
            claim(requests, constraint)
        });
        (fixture, claims.collect())
    }

    /// Whether the devices (their numbers, by wish) keep all the rules.
    fn is_solution(&self, given: &[Vec<usize>]) -> bool {
        let mut whole: Vec<Vec<(usize, bool)>> = vec![Vec::new(); self.things.len()];
        let mut amounts: Vec<i64> = self.things.iter().map(|t| t.used.unwrap_or(0)).collect();
        let mut colours: Vec<Vec<i64>> = vec![Vec::new(); self.constraints.len()];
        for (wish, devices) in self.wishes.iter().zip(given) {
            for &at in devices {
                let t = &self.things[at];
                if wish.colour.is_some() && wish.colour != t.colour || t.tainted && !wish.tolerates {
                    return false;
                }
                match t.capacity {
                    Some(capacity) => amounts[at] += wish.amount.unwrap_or(capacity),
                    None if wish.amount.is_some() || (!wish.admin && t.used.is_some()) => return false,
                    None => whole[at].push((wish.claim, wish.admin)),
                }
                if self.constraints[wish.claim].is_some() {
                    let Some(colour) = t.colour else { return false };
                    colours[wish.claim].push(colour);
                }
            }
        }
        // A device that is not shared goes to one request; later ones may have it for administration only, and
        // only in another claim.
        for users in &whole {
            for (i, (claim, admin)) in users.iter().enumerate() {
                if i > 0 && (!admin || users[..i].iter().any(|(other, _)| other == claim)) {
                    return false;
                }
            }
        }
        let fits = |(t, amount): (&Thing, &i64)| t.capacity.is_none_or(|capacity| *amount <= capacity);
        let mut left = COUNTER;
        for (at, t) in self.things.iter().enumerate() {
            // Administrative access takes counters as any other, each time.
            let users = given.iter().flatten().filter(|d| **d == at).count() as i64;
            let before = i64::from(t.used.is_some());
            let times = if t.capacity.is_some() { before.max(users.min(1)) } else { before + users };
            left -= t.counter * times;
        }
        // Those that were there before may have taken too much: then nobody gets any more, but who takes none is free.
        let takes = given.iter().flatten().any(|d| {
            let t = &self.things[*d];
            t.counter > 0 && !(t.capacity.is_some() && t.used.is_some())
        });
        self.things
            .iter()
            .zip(&amounts)
            .filter(|(t, _)| given.iter().flatten().any(|d| self.things[*d].name == t.name))
            .all(fits)
            && (left >= 0 || !takes)
            && colours.iter().zip(&self.constraints).all(|(colours, constraint)| match constraint {
                None => true,
                Some(false) => colours.windows(2).all(|w| w[0] == w[1]),
                Some(true) => (0..colours.len()).all(|i| !colours[..i].contains(&colours[i])),
            })
    }

    /// Every choice of devices for the wishes from `given.len()` on.
    fn any_solution(&self, given: &mut Vec<Vec<usize>>) -> bool {
        let Some(wish) = self.wishes.get(given.len()) else { return self.is_solution(given) };
        let n = self.things.len();
        (0..1_usize << n).filter(|set| set.count_ones() as usize == wish.count).any(|set| {
            given.push((0..n).filter(|at| set >> at & 1 == 1).collect());
            let found = self.any_solution(given);
            given.pop();
            found
        })
    }

    /// The numbers of the devices that were given, by wish.
    fn read(&self, allocations: &[super::Allocation]) -> Vec<Vec<usize>> {
        let mut out = vec![Vec::new(); self.wishes.len()];
        for value in allocations.iter().map(|a| a.to_json(String::new)) {
            for result in value["devices"]["results"].as_array().unwrap() {
                let wish: usize = result["request"].as_str().unwrap()[1..].parse().unwrap();
                let at = self.things.iter().position(|t| result["device"] == *t.name).unwrap();
                out[wish].push(at);
            }
        }
        out
    }
}

#[test]
fn a_solution_is_found_where_there_is_one() {
    let mut random = Random(0x5eed_0dac_11a1_0001);
    let mut found = 0;
    for round in 0..1000 {
        let problem = Problem::new(&mut random);
        let (mut fixture, claims) = problem.fixture();
        let claims = fixture.claims(&claims);
        let exists = problem.any_solution(&mut Vec::new());
        match fixture.allocate(&claims, 1_000_000).unwrap() {
            None => assert!(!exists, "round {round}: {problem:?}"),
            Some(allocations) => {
                let given = problem.read(&allocations);
                assert!(problem.is_solution(&given), "round {round}: {given:?} {problem:?}");
                found += 1;
            }
        }
    }
    // The problems are neither all hopeless nor all easy.
    assert!((200..800).contains(&found), "{found}");
}
