#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph.hpp"

// Of the text under a key of a graph's metadata, nothing where there is none.
// Failure(Exit::graph): it is missing, cannot be read, or is of a graph that this program cannot run.
Spec read_spec(const std::optional<std::string>& text);
Preprocess read_preprocess(const std::optional<std::string>& text);
std::vector<std::string> read_labels(const std::optional<std::string>& text);
