//! Compiles the two C++ files against the libtorch that torch-sys found.

use std::env;
use std::path::PathBuf;

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
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(headers.join("torch/csrc/api/include"))
        .include(headers)
        .flag_if_supported("-fopenmp") // libtorch's threads; torch-sys links their library
        .warnings(false)
        .files(SOURCES)
        .compile("diva_libtorch");
}
