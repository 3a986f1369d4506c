//! Compiles the C++ files against the libtorch that torch-sys found, and notes its version.

use std::path::{Path, PathBuf};
use std::{env, fs};

const SOURCES: [&str; 3] = ["src/autograd/node.cpp", "src/optim/lists.cpp", "src/threads/team.cpp"];

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

/// `2.13.0`, from torch's own header, which is in one of two places.
fn version(headers: &Path) -> String {
    let places = ["torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"];
    let header = places.map(|place| headers.join(place)).into_iter().find(|place| place.exists());
    let header = header.unwrap_or_else(|| panic!("{} holds no version.h of torch", headers.display()));
    println!("cargo:rerun-if-changed={}", header.display());
    let text = fs::read_to_string(header).unwrap_or_default();
    let part = |name: &str| {
        let value =
            text.lines().find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")));
        value.unwrap_or_else(|| panic!("torch's version.h has no TORCH_VERSION_{name}")).trim().to_owned()
    };
    format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH"))
}
