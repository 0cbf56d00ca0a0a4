//! What was measured, beside what was asked for.

/// One quantity: its bar and aim, whether more is better, and what each round gave.
pub struct Measure {
    what: &'static str,
    unit: &'static str,
    bar: f64,
    aim: f64,
    more_is_better: bool,
    floor: Option<f64>,
    rounds: Vec<f64>,
}

impl Measure {
    fn new(what: &'static str, unit: &'static str, bar: f64, aim: f64) -> Self {
        Self { what, unit, bar, aim, more_is_better: false, floor: None, rounds: vec![] }
    }

    /// What it cannot be less than.
    pub fn floor(&mut self, floor: f64) {
        self.floor = Some(floor);
    }

    /// One more round's figure.
    pub fn add(&mut self, value: f64) {
        self.rounds.push(value);
    }

    fn verdict(&self) -> &'static str {
        let reaches = |limit: f64| {
            let good = |v: &f64| if self.more_is_better { *v >= limit } else { *v <= limit };
            self.rounds.iter().all(good)
        };
        match (self.rounds.is_empty(), reaches(self.aim), reaches(self.bar)) {
            (true, ..) => "not run",
            (_, true, _) => "aim",
            (_, _, true) => "bar",
            _ => "missed",
        }
    }

    fn row(&self) -> Vec<String> {
        let number = |v: f64| if v.abs() < 1.0 { format!("{v:.3}") } else { format!("{v:.2}") };
        let sign = if self.more_is_better { "≥" } else { "≤" };
        let rounds: Vec<String> = self.rounds.iter().map(|v| number(*v)).collect();
        vec![
            self.what.to_string(),
            self.unit.to_string(),
            format!("{sign} {}", number(self.bar)),
            format!("{sign} {}", number(self.aim)),
            rounds.join(", "),
            self.floor.map_or(String::new(), number),
            self.verdict().to_string(),
        ]
    }
}

/// What is asked of one H100 with the real model.
pub struct Table {
    pub step: Measure,
    pub train: Measure,
    pub memory: Measure,
    pub generation: Measure,
    pub load: Measure,
    pub evaluation: Measure,
}

impl Table {
    /// `bf16_moments`: another aim for the memory.
    pub fn new(bf16_moments: bool) -> Self {
        Self {
            step: Measure::new("training step, median", "ms", 8.0, 4.0),
            train: Measure::new("train(), 3 epochs", "s", 20.0, 8.0),
            memory: Measure::new("memory allocated", "GB", 3.6, if bf16_moments { 2.3 } else { 3.2 }),
            generation: Measure {
                more_is_better: true,
                ..Measure::new("greedy generation", "tokens/s", 500.0, 1500.0)
            },
            load: Measure::new("GGUF to ready on the GPU", "s", 3.0, 1.0),
            evaluation: Measure::new("loss of the held-out rows", "s", 1.0, 0.3),
        }
    }

    /// Prints it in Markdown.
    pub fn print(&self) {
        let head = ["what", "unit", "bar", "aim", "measured, each round", "floor", "reaches"];
        println!("\n| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
        for m in [&self.step, &self.train, &self.memory, &self.generation, &self.load, &self.evaluation] {
            println!("| {} |", m.row().join(" | "));
        }
    }
}
