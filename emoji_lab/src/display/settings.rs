//! A configuration as a table: what differs from the defaults first.

use std::fmt::Debug;

use super::table::{Align, Table};

/// Longer configurations show only what differs, and the rest in a line.
const ALL_SHOWN: usize = 8;

/// One field: its name, its value, and the default's.
pub(crate) type Field = (&'static str, String, String);

/// The table of a configuration. Fields as they are written in a cell.
pub(crate) fn settings_table(caption: &str, fields: Vec<Field>) -> Table {
    let show_all = fields.len() <= ALL_SHOWN;
    let (changed, usual): (Vec<Field>, Vec<Field>) =
        fields.into_iter().partition(|(_, value, default)| value != default);
    let mut table = Table::new(caption)
        .column("Setting", Align::Left)
        .column("Value", Align::Left)
        .column("Default", Align::Left);
    for (name, value, default) in changed {
        table = table.row([name.to_string(), value, default]);
    }
    if show_all {
        usual.into_iter().fold(table, |table, (name, value, _)| {
            table.row([name.to_string(), value, "the same".to_string()])
        })
    } else {
        let rest: Vec<String> = usual.into_iter().map(|(name, value, _)| format!("{name}={value}")).collect();
        table.note(format!("As by default: {}.", rest.join(", ")))
    }
}

/// A value as it would be written, without the words that only Rust needs.
pub(crate) fn shown(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    match text.strip_prefix("Some(").and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => inner.to_string(),
        None => text,
    }
}

/// Shows a configuration in a notebook and as text. All fields must be named, or it does not compile.
macro_rules! settings_view {
    ($config:ty, $caption:literal, $($field:ident),+ $(,)?) => {
        impl $config {
            fn table(&self) -> $crate::display::Table {
                use $crate::display::{settings_table, shown};
                let Self { $($field),+ } = self;
                let default = Self::default();
                settings_table($caption, vec![$((stringify!($field), shown($field), shown(&default.$field))),+])
            }

            fn to_text(&self) -> String {
                self.table().to_text()
            }

            fn to_html(&self) -> String {
                self.table().to_html()
            }
        }

        $crate::display::notebook_view!($config);
    };
}
pub(crate) use settings_view;

#[cfg(test)]
mod tests {
    use crate::lora::LoraConfig;
    use crate::quant::QuantConfig;
    use crate::train::{SftConfig, Strategy};

    #[test]
    fn what_differs_comes_first() {
        let text = LoraConfig { lora_dropout: 0.0, ..LoraConfig::default() }.to_string();
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.iter().position(|line| line.contains("lora_dropout")).unwrap();
        assert!(lines[first].contains("0.0") && lines[first].contains("0.05"), "{text}");
        assert!(lines.iter().position(|line| line.trim_start().starts_with("r ")).unwrap() > first, "{text}");
        assert!(QuantConfig::none().to_string().contains("load_in_4bit"));
    }

    #[test]
    fn long_ones_are_short() {
        let args =
            SftConfig { max_steps: Some(5), save_strategy: Strategy::Steps(2), ..SftConfig::default() };
        let text = args.to_string();
        assert!(text.contains("max_steps") && text.contains("Steps(2)") && text.contains("None"), "{text}");
        assert!(text.contains("As by default:") && text.contains("learning_rate=5e-5"), "{text}");
        // Of the fields alone the changed ones have a line.
        assert!(!text.lines().any(|line| line.trim_start().starts_with("learning_rate ")), "{text}");
    }
}
