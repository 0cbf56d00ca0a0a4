//! Structs that CUDA has as well: what a kernel takes, and what lies in device memory.
//!
//! Rust asserts size and offsets by `mirrored!`, CUDA by `MIRRORED` (`ops/common.cuh`), each when it is
//! compiled. The test below holds the two lists against each other, and every kernel's name against the
//! struct it takes.

/// Asserts the layout of a `#[repr(C)]` struct, of which all fields must be named:
/// `mirrored! { Struct: size { field: offset, … } }`.
macro_rules! mirrored {
    ($type:ident $(<$of:ty>)?: $size:literal { $($field:ident: $offset:literal),+ $(,)? }) => {
        const _: () = {
            type Mirrored = $type $(<$of>)?;
            assert!(size_of::<Mirrored>() == $size);
            $(assert!(std::mem::offset_of!(Mirrored, $field) == $offset);)+
            fn _all_fields(of: &Mirrored) {
                let $type { $($field: _),+ } = of;
            }
        };
    };
}
pub(crate) use mirrored;

/// [`mirrored!`] for a struct that lies in device memory: it also is [`Plain`](super::pointer::Plain),
/// after a look that there are no gaps between its fields.
macro_rules! mirrored_in_memory {
    ($type:ident: $size:literal { $($field:ident: $offset:literal),+ $(,)? }) => {
        $crate::gpu::mirror::mirrored! { $type: $size { $($field: $offset),+ } }
        const _: () = {
            const fn size<S, F>(_: fn(&S) -> &F) -> usize {
                size_of::<F>()
            }
            assert!($size == 0 $(+ size(|of: &$type| &of.$field))+, "there are gaps between the fields");
        };
        // SAFETY: `repr(C)`, and its fields, which are numbers and addresses, make up all of its bytes.
        unsafe impl $crate::gpu::pointer::Plain for $type {}
    };
}
pub(crate) use mirrored_in_memory;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    /// Every file of kernels, and the Rust that launches them.
    const CUDA: [(&str, &str); 24] = [
        ("common.cuh", include_str!("../ops/common.cuh")),
        ("adapters.cuh", include_str!("../ops/adapters.cuh")),
        ("mma.cuh", include_str!("../ops/mma.cuh")),
        ("decode/state.cuh", include_str!("../ops/decode/state.cuh")),
        ("adamw/elements.cuh", include_str!("../ops/adamw/elements.cuh")),
        ("adamw/head.cu", include_str!("../ops/adamw/head.cu")),
        ("adamw/kernel.cu", include_str!("../ops/adamw/kernel.cu")),
        ("attention/arguments.cuh", include_str!("../ops/attention/arguments.cuh")),
        ("attention/kernel.cu", include_str!("../ops/attention/kernel.cu")),
        ("attention/tiles.cu", include_str!("../ops/attention/tiles.cu")),
        ("decode/kernel.cu", include_str!("../ops/decode/kernel.cu")),
        ("decode_rows/kernel.cu", include_str!("../ops/decode_rows/kernel.cu")),
        ("embedding/kernel.cu", include_str!("../ops/embedding/kernel.cu")),
        ("geglu/kernel.cu", include_str!("../ops/geglu/kernel.cu")),
        ("grad_norm/head.cu", include_str!("../ops/grad_norm/head.cu")),
        ("grad_norm/kernel.cu", include_str!("../ops/grad_norm/kernel.cu")),
        ("linear_cross_entropy/kernel.cu", include_str!("../ops/linear_cross_entropy/kernel.cu")),
        ("lora_linear/gradients.cu", include_str!("../ops/lora_linear/gradients.cu")),
        ("lora_linear/kernel.cu", include_str!("../ops/lora_linear/kernel.cu")),
        ("lora_linear/many.cu", include_str!("../ops/lora_linear/many.cu")),
        ("lora_linear/tensor.cu", include_str!("../ops/lora_linear/tensor.cu")),
        ("rms_norm/kernel.cu", include_str!("../ops/rms_norm/kernel.cu")),
        ("rope/kernel.cu", include_str!("../ops/rope/kernel.cu")),
        ("sample/kernel.cu", include_str!("../ops/sample/kernel.cu")),
    ];
    const RUST: [&str; 15] = [
        include_str!("../ops/step.rs"),
        include_str!("../ops/adamw/cuda.rs"),
        include_str!("../ops/adamw/head.rs"),
        include_str!("../ops/attention/cuda.rs"),
        include_str!("../ops/decode/cuda.rs"),
        include_str!("../ops/decode_rows/cuda.rs"),
        include_str!("../ops/embedding/cuda.rs"),
        include_str!("../ops/geglu/cuda.rs"),
        include_str!("../ops/grad_norm/cuda.rs"),
        include_str!("../ops/grad_norm/head.rs"),
        include_str!("../ops/linear_cross_entropy/cuda.rs"),
        include_str!("../ops/lora_linear/cuda.rs"),
        include_str!("../ops/rms_norm/cuda.rs"),
        include_str!("../ops/rope/cuda.rs"),
        include_str!("../ops/sample/cuda.rs"),
    ];

    /// Size, then every field with its offset.
    type Layout = (usize, Vec<(String, usize)>);

    fn words(text: &str) -> Vec<&str> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
    }

    /// What follows `start` at the beginning of a line, with the indented lines after it.
    fn after<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = String> + 'a {
        let lines: Vec<&str> = text.lines().collect();
        (0..lines.len()).filter_map(move |i| {
            let first = lines[i].strip_prefix(start)?;
            let rest = lines[i + 1..].iter().take_while(|line| line.starts_with(' '));
            Some(rest.fold(first.to_string(), |all, line| all + line))
        })
    }

    /// Of `Struct<T>, size, AT(field, offset) …` or `Struct<T>: size { field: offset, … }`.
    fn layout(text: &str) -> (String, Layout) {
        let (name, rest) = text.split_once([',', ':']).unwrap();
        let rest: Vec<&str> = words(rest).into_iter().filter(|word| *word != "AT").collect();
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{word} in {text}"));
        let fields = rest[1..].chunks(2).map(|pair| (pair[0].to_string(), number(pair[1])));
        (words(name)[0].to_string(), (number(rest[0]), fields.collect()))
    }

    fn layouts<'a>(texts: impl Iterator<Item = &'a str>, starts: &'a [&'a str]) -> BTreeMap<String, Layout> {
        let mut all = BTreeMap::new();
        for text in texts {
            for (name, layout) in starts.iter().flat_map(|start| after(text, start)).map(|t| layout(&t)) {
                assert!(all.insert(name.clone(), layout).is_none(), "{name} is there twice");
            }
        }
        all
    }

    #[test]
    fn structs_are_the_same_in_rust_and_cuda() {
        let cuda = layouts(CUDA.iter().map(|(_, text)| *text), &["MIRRORED("]);
        let rust = layouts(RUST.iter().copied(), &["mirrored! {", "mirrored_in_memory! {"]);
        assert!(cuda.len() > 30, "{} structs", cuda.len());
        for name in cuda.keys().chain(rust.keys()) {
            assert_eq!(rust.get(name), cuda.get(name), "{name}: Rust on the left, CUDA on the right");
        }
    }

    /// Every kernel by its name in the module, with the struct that it takes.
    fn cuda_kernels() -> BTreeMap<String, String> {
        let mut kernels = BTreeMap::new();
        for line in CUDA.iter().flat_map(|(_, text)| text.lines()) {
            let words = words(line);
            let types =
                [("FOR_BOTH_TYPES", &["f32", "bf16"][..]), ("FOR_BF16", &["bf16"]), ("FOR_F32", &["f32"])];
            if let Some((_, types)) = types.iter().find(|(start, _)| line.starts_with(start)) {
                let [.., name, arguments] = words[..] else { panic!("{line}") };
                for dtype in *types {
                    kernels.insert(format!("{name}_{dtype}"), arguments.to_string());
                }
            } else if line.starts_with("extern") {
                // Without `__launch_bounds__(threads, blocks)`.
                let is_bound = |word: &&str| *word == "__launch_bounds__" || word.parse::<u32>().is_ok();
                let words: Vec<&str> = words.into_iter().filter(|word| !is_bound(word)).collect();
                let ["extern", "C", "__global__", "void", name, "const", "__grid_constant__", arguments, ..] =
                    words[..]
                else {
                    panic!("not a kernel with one argument: {line}")
                };
                kernels.insert(name.to_string(), arguments.to_string());
            }
        }
        kernels
    }

    #[test]
    fn kernels_take_the_structs_they_are_launched_with() {
        let mut left = cuda_kernels();
        let cuda = left.clone();
        assert!(cuda.len() > 50, "{} kernels", cuda.len());
        for line in RUST.iter().flat_map(|text| text.lines()).filter(|line| line.contains(": Kernel<")) {
            // const NAME: Kernel<Struct<T>> = Kernel::typed("name");
            let words = words(line);
            let [_, _, "Kernel", arguments, .., "Kernel", which, name] = words[..] else { panic!("{line}") };
            let names = match which {
                "typed" => vec![format!("{name}_f32"), format!("{name}_bf16")],
                _ => vec![name.to_string()],
            };
            for name in names {
                assert_eq!(cuda.get(&name).map(String::as_str), Some(arguments), "{name}");
                left.remove(&name);
            }
        }
        assert!(left.is_empty(), "never launched: {left:?}");
    }

    #[test]
    fn no_file_is_left_out() {
        let kernels = include_str!("../ops/kernels.cu");
        for file in kernels.lines().filter_map(|line| line.strip_prefix("#include \"")) {
            let file = file.trim_end_matches('"');
            assert!(CUDA.iter().any(|(name, _)| *name == file), "{file}");
        }
    }
}
