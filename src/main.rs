fn main() -> std::process::ExitCode {
    if belljar::sandbox::launcher::is_launcher(std::env::args_os().next().as_deref()) {
        return belljar::sandbox::launcher::run().into();
    }
    std::process::ExitCode::SUCCESS
}
