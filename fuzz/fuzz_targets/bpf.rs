#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cases::bpf(data);
});
