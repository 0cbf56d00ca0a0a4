//! The pinned releases. `npm view NAME@VERSION dist.integrity` says the archives' hashes.

use super::library::{Package, Part, Release};

/// llama.cpp in WebAssembly. Browsers without JSPI or 64-bit memory (Safari) take the build of the second
/// package.
pub(super) static WLLAMA: Release = Release {
    name: "wllama",
    version: "3.13.0",
    licence: "MIT licence",
    notice: "\
wllama 3.13.0: https://github.com/ngxson/wllama, Copyright (c) 2024 Xuan Son NGUYEN, MIT licence
In it llama.cpp: https://github.com/ggml-org/llama.cpp, Copyright (c) The ggml authors, MIT licence
",
    packages: &[
        Package {
            name: "@wllama/wllama",
            version: "3.13.0",
            integrity: "sha512-ZvoRdQAn+E+18EvQ9qS036gudiI9rbZRBJgG/qNICPPwrA0Y6SMMdbziz/j7K/0WxcbJlhaRraVIYsnEy732NA==",
            parts: &[
                Part {
                    key: "script",
                    file: "wllama.js",
                    inside: "esm/index.js",
                    bytes: 275_466,
                    integrity: "sha384-1IXHURZyRAYx2LmPev5lR2vQNJLbFjSGx7HKPHjrVdpGqgPnkJm6bhGWztq7dNBU",
                },
                Part {
                    key: "wasm",
                    file: "wllama.wasm",
                    inside: "esm/wasm/wllama.wasm",
                    bytes: 10_244_628,
                    integrity: "sha384-WKrRNgBRwQ97MWPBIuel3xEbflWmkojJdd4jKCpNISH26ujPRdF5Iqtw9QRPqSzl",
                },
                Part {
                    key: "",
                    file: "wllama-LICENSE.txt",
                    inside: "LICENCE",
                    bytes: 1071,
                    integrity: "sha384-gTPBtuBWriuqRePlbeC5Lk/+5r+SIsOFKmOII9TlFpIdVqxNThwVPAXrS7tgHIxo",
                },
            ],
        },
        Package {
            name: "@wllama/wllama-compat",
            version: "3.13.0",
            integrity: "sha512-MSWwyzVXpwkstvIGzOsQ9jlRm8kY5S5J0Gdw4E6M9mXqhgO/5tj+YNfxSoqN1GvsAOwui95JPtwX3hO6VZkbzg==",
            parts: &[
                Part {
                    key: "other_script",
                    file: "wllama-compat.js",
                    inside: "wasm/wllama.js",
                    bytes: 173_601,
                    integrity: "sha384-qj77lXYFodEfG6vuW5WRFmVSKtWQepYXFKXhIbVxLRSdmgQm0Oj07Kfgv5J440nk",
                },
                Part {
                    key: "other_wasm",
                    file: "wllama-compat.wasm",
                    inside: "wasm/wllama.wasm",
                    bytes: 18_755_784,
                    integrity: "sha384-fQ0Go4eBGGO3i0VroQZYL5Cx1Mzk7RE8iUF+YNSf8sr/uvmtGJtpAvRIuqiwlG1Q",
                },
            ],
        },
    ],
};

/// ONNX models in the browser, by onnxruntime: on WebGPU and in WebAssembly.
pub(super) static TRANSFORMERS_JS: Release = Release {
    name: "Transformers.js",
    version: "4.3.1",
    licence: "Apache licence",
    notice: "\
Transformers.js 4.3.1: https://github.com/huggingface/transformers.js, Copyright The Hugging Face team, Apache License 2.0
In it onnxruntime: https://github.com/microsoft/onnxruntime, Copyright (c) Microsoft Corporation, MIT License:
  Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
  documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation
  the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
  permit persons to whom the Software is furnished to do so, subject to the following conditions:
  The above copyright notice and this permission notice shall be included in all copies or substantial portions of
  the Software.
  THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
  THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
  AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
  TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
  SOFTWARE.
",
    packages: &[
        Package {
            name: "@huggingface/transformers",
            version: "4.3.1",
            integrity: "sha512-5+voSeUCFK6PCKlY15dPhNOKq3/zOTxDN7oC+Wy9dFb1QZ0TSQomZRRy7URRK8YRuUoE9fGMQTTPC5d/pWBJhA==",
            parts: &[
                Part {
                    key: "script",
                    file: "transformers.js",
                    inside: "dist/transformers.min.js",
                    bytes: 586_230,
                    integrity: "sha384-AFNtlNOt2vbygtlRCUX2TDgkE+EyonjbCLxAfqezYwJJDVlozUhg+yKs4cPwyjHR",
                },
                Part {
                    key: "",
                    file: "transformers-LICENSE.txt",
                    inside: "LICENSE",
                    bytes: 11_358,
                    integrity: "sha384-II9e1ieUDl5AxyiVq3/FflTua1Sr0kMJ25e6imG7rXg7SiAsA2VemsvEqVsLqM7/",
                },
            ],
        },
        Package {
            // The release that this one of Transformers.js names.
            name: "onnxruntime-web",
            version: "1.31.0-dev.20260914-8d85527a0",
            integrity: "sha512-Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
            parts: &[
                Part {
                    key: "glue",
                    // It starts its threads under this name.
                    file: "ort-wasm-simd-threaded.asyncify.mjs",
                    inside: "dist/ort-wasm-simd-threaded.asyncify.mjs",
                    bytes: 53_057,
                    integrity: "sha384-ik7L7J2uXfXmGuWHh3yOUDPpUslz/dJjcvZgdX5hcItLjxlkEpUF7mpCcATr3Dg8",
                },
                Part {
                    key: "wasm",
                    file: "ort-wasm-simd-threaded.asyncify.wasm",
                    inside: "dist/ort-wasm-simd-threaded.asyncify.wasm",
                    bytes: 26_861_777,
                    integrity: "sha384-JuzrCV6BUmTUbsgNhgU94qo0vZ4l3w0VqgQAKPm0La2hXL9kmv8P9pGenfsWJY9c",
                },
            ],
        },
    ],
};
