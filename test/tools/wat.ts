/** Modules in WebAssembly's text, with what they need of WASI. */
export const wat = {
  hello: `(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\\20\\00\\00\\00\\17\\00\\00\\00\\40\\00\\00\\00\\16\\00\\00\\00")
    (data (i32.const 32) "hello from WebAssembly\\0a")
    (data (i32.const 64) "and on standard error\\0a")
    (func (export "_start")
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
      (drop (call $write (i32.const 2) (i32.const 8) (i32.const 1) (i32.const 16)))
      (call $exit (i32.const 7))))`,
  /** A subscription of zeros but for its timeout: an hour of the clock's nanoseconds. */
  waits: `(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
      (i32.store (i32.const 16) (i32.const 1))
      (i64.store (i32.const 24) (i64.const 3600000000000))
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))`,
  grows: `(module
    (memory (export "memory") 1)
    (func (export "_start") (local $at i32)
      (loop $more
        (drop (memory.grow (i32.const 16)))
        (memory.fill (local.get $at) (i32.const 1) (i32.const 1048576))
        (local.set $at (i32.add (local.get $at) (i32.const 1048576)))
        (br $more))))`,
};
