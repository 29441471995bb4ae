// The subcommands of `densemamba`; each takes the arguments after its name and returns the exit code.
#pragma once

namespace dm {

int train_command(int argc, char** argv);
int plan_command(int argc, char** argv);
int tokenizer_command(int argc, char** argv);
int generate_command(int argc, char** argv);
int inspect_command(int argc, char** argv);
int verify_command(int argc, char** argv);
int bench_step_command(int argc, char** argv);
int bench_kernels_command(int argc, char** argv);

/// Prints the exception being handled as one line on stderr, "densemamba: <rank>: <what failed and what to change>" (the
/// rank only under mpirun), and returns the exit code that belongs to it. Call it in a catch block: `main` does, and a
/// command that must end its whole MPI job before it unwinds.
int report_current_exception() noexcept;

}  // namespace dm
