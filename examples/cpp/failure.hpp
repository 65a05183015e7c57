// What ends a program, or one answer of the service: words for a person, and the exit code for a script.
#pragma once

#include <stdexcept>
#include <string>

enum class Exit { fine = 0, unforeseen = 1, usage = 2, library = 3, graph = 4, picture = 5, output = 6, head = 7 };

struct Failure : std::runtime_error {
  Failure(Exit exit_code, const std::string& reason) : std::runtime_error(reason), code(exit_code) {}
  Exit code;
};
