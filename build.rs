//! Compiles the two C++ files against the libtorch that torch-sys found, and notes its version.

use std::path::{Path, PathBuf};
use std::{env, fs};

const SOURCES: [&str; 2] = ["src/autograd/node.cpp", "src/threads/team.cpp"];

fn main() {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    let Some(libraries) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        println!("cargo:warning=torch-sys did not say where libtorch is");
        return;
    };
    let headers = libraries.with_file_name("include");
    println!("cargo:rustc-env=DIVA_TORCH={}", version(&headers));
    cc::Build::new()
        .cpp(true)
        .include(headers.join("torch/csrc/api/include"))
        .include(headers)
        .flag_if_supported("-fopenmp") // libtorch's threads; torch-sys links their library
        .warnings(false)
        .files(SOURCES)
        .compile("diva_libtorch");
}

/// `2.13.0`, from torch's own header.
fn version(headers: &Path) -> String {
    let header = headers.join("torch/headeronly/version.h");
    println!("cargo:rerun-if-changed={}", header.display());
    let text = fs::read_to_string(header).unwrap_or_default();
    let part = |name: &str| {
        let value =
            text.lines().find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")));
        value.unwrap_or("?").trim().to_owned()
    };
    format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH"))
}
