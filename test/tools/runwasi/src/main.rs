//! A shim of runwasi's with wasmi as its engine, as runwasi's own are with theirs.

use anyhow::Result;
use containerd_shim_wasm::sandbox::Sandbox;
use containerd_shim_wasm::sandbox::context::{Entrypoint, RuntimeContext};
use containerd_shim_wasm::shim::{Cli, Shim, Version, version};
use wasmi::{Engine, Linker, Module, Store};
use wasmi_wasi::WasiCtxBuilder;

struct WasmiShim;

impl Shim for WasmiShim {
    type Sandbox = WasmiSandbox;

    fn name() -> &'static str {
        "wasmi"
    }

    fn version() -> Version {
        version!()
    }
}

#[derive(Default)]
struct WasmiSandbox(Engine);

impl Sandbox for WasmiSandbox {
    async fn run_wasi(&self, ctx: &impl RuntimeContext) -> Result<i32> {
        let Entrypoint { source, func, .. } = ctx.entrypoint();
        let mut wasi = WasiCtxBuilder::new();
        wasi.inherit_stdio().args(ctx.args())?;
        for (name, value) in ctx.envs().iter().filter_map(|env| env.split_once('=')) {
            wasi.env(name, value)?;
        }
        let mut store = Store::new(&self.0, wasi.build());
        let mut linker = Linker::new(&self.0);
        wasmi_wasi::add_to_linker(&mut linker, |wasi| wasi)?;
        // Text or binary.
        let module = Module::new(&self.0, &source.as_bytes()?)?;
        let instance = linker.instantiate_and_start(&mut store, &module)?;
        match instance.get_typed_func::<(), ()>(&store, &func)?.call(&mut store, ()) {
            Ok(()) => Ok(0),
            Err(error) => Ok(error.i32_exit_status().ok_or(error)?),
        }
    }
}

fn main() {
    WasmiShim::run(None);
}
