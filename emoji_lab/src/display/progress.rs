//! Progress of a long step in a fixed number of plain lines.
//!
//! A notebook cell shows whole lines as they come and never redraws one: a bar would show as a
//! heap of bars.

use std::time::Duration;

use super::text::thousands;

/// Decides which of a run's steps are worth a line.
#[derive(Debug, Clone)]
pub struct Progress {
    total_steps: usize,
    first_step: usize,
    lines: usize,
    printed: usize,
}

impl Progress {
    /// For a run of `total_steps` steps shown in at most `lines` lines: the first step, so that
    /// people see it moves, the last, and steps at even distances between.
    pub fn new(total_steps: usize, lines: usize) -> Self {
        Self::resumed(0, total_steps, lines)
    }

    /// [`Progress::new`] for a run that goes on after `steps_done`.
    pub fn resumed(steps_done: usize, total_steps: usize, lines: usize) -> Self {
        Self { total_steps, first_step: steps_done.saturating_add(1), lines, printed: 0 }
    }

    /// The line for `step` (from 1), or nothing if its turn has not come.
    ///
    /// `loss` is in nats per token, `eta` the time left. A figure that is not known, or not finite,
    /// is left out.
    pub fn line(
        &mut self,
        step: usize,
        loss: Option<f64>,
        tokens_per_s: Option<f64>,
        eta: Option<Duration>,
    ) -> Option<String> {
        if self.printed >= self.lines || step > self.total_steps || step < self.due(self.printed) {
            return None;
        }
        // Steps may come in jumps: all lines that are due by now are this one.
        while self.printed < self.lines && self.due(self.printed) <= step {
            self.printed += 1;
        }
        let total = thousands(self.total_steps as u64);
        let percent = 100 * step as u128 / self.total_steps.max(1) as u128;
        let mut line =
            format!("step {:>w$}/{total}  {percent:>3} %", thousands(step as u64), w = total.len());
        match loss {
            Some(loss) if loss.is_finite() => line += &format!("  loss {loss:.4}"),
            Some(loss) => line += &format!("  loss {loss}"),
            None => {}
        }
        if let Some(rate) = tokens_per_s.filter(|rate| rate.is_finite() && *rate >= 0.0) {
            line += &format!("  {} tokens/s", thousands(rate.round() as u64));
        }
        if let Some(eta) = eta.filter(|_| step < self.total_steps) {
            line += &format!("  {} left", human_duration(eta));
        }
        Some(line)
    }

    /// The step at which line `index` is due.
    fn due(&self, index: usize) -> usize {
        let last = self.total_steps.saturating_sub(self.first_step);
        match (index, self.lines) {
            (_, 0 | 1) => self.total_steps,
            // u128: steps times lines may not fit for numbers that nobody would use.
            (i, lines) => {
                let far = last as u128 * i as u128 / (lines - 1) as u128;
                self.first_step + far as usize
            }
        }
    }
}

/// A time as people say it: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`.
pub fn human_duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3_600..172_800 => format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} days {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mut progress: Progress, steps: impl Iterator<Item = usize>) -> Vec<usize> {
        steps.filter(|step| progress.line(*step, Some(1.0), None, None).is_some()).collect()
    }

    #[test]
    fn about_as_many_lines_as_asked_for() {
        for total in [1, 2, 14, 15, 16, 17, 100, 1_536, 100_003] {
            let steps = shown(Progress::new(total, 15), 1..=total);
            assert_eq!(steps.len(), total.min(15), "{total}: {steps:?}");
            assert_eq!((steps.first(), steps.last()), (Some(&1), Some(&total)));
        }
        assert_eq!(shown(Progress::new(100, 1), 1..=100), [100]);
        assert!(shown(Progress::new(100, 0), 1..=100).is_empty());
        assert!(shown(Progress::new(0, 15), 0..=3).is_empty());
        assert!(shown(Progress::resumed(10, 10, 15), 0..=30).is_empty());
        assert_eq!(shown(Progress::new(usize::MAX, 3), [1, usize::MAX].into_iter()), [1, usize::MAX]);
    }

    #[test]
    fn lines_are_evenly_spread() {
        let steps = shown(Progress::new(1_400, 15), 1..=1_400);
        let gaps: Vec<usize> = steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (98..=101).contains(gap)), "{gaps:?}");
    }

    #[test]
    fn a_resumed_run_and_one_that_jumps() {
        let steps = shown(Progress::resumed(500, 1_000, 15), 501..=1_000);
        assert_eq!((steps.len(), steps[0], steps[14]), (15, 501, 1_000));
        let steps = shown(Progress::new(1_000, 15), (50..=1_000).step_by(50));
        assert!(steps.len() <= 15 && steps.last() == Some(&1_000), "{steps:?}");
        // Steps past the announced end stay silent.
        assert_eq!(shown(Progress::new(10, 5), 1..=50).last(), Some(&10));
    }

    #[test]
    fn a_line_says_what_is_known() {
        let eta = Some(Duration::from_secs(250));
        let mut progress = Progress::new(1_536, 15);
        assert_eq!(
            progress.line(1, Some(3.21434), Some(1_839.6), eta).as_deref(),
            Some("step     1/1,536    0 %  loss 3.2143  1,840 tokens/s  4 min 10 s left")
        );
        assert_eq!(
            progress.line(1_536, Some(f64::NAN), Some(f64::INFINITY), eta).as_deref(),
            Some("step 1,536/1,536  100 %  loss NaN")
        );
    }

    #[test]
    fn durations_read_well() {
        let shown = [0.42, 9.96, 59.4, 185.0, 3_599.6, 7_800.0, 200_000.0]
            .map(|seconds| human_duration(Duration::from_secs_f64(seconds)));
        assert_eq!(shown, ["0.4 s", "10 s", "59 s", "3 min 05 s", "1 h 00 min", "2 h 10 min", "2 days 7 h"]);
    }
}
