// The command line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "head.hpp"

struct Options {
  std::string graph;
  std::vector<std::filesystem::path> photos;
  std::string onnxruntime;          // the library's path
  std::string target;               // a class by number or label; "": the top one
  std::filesystem::path output;     // a file, or a folder; "": no overlays
  Look look;
  int threads = 1;
  int top = 5;
  bool json = false, serve = false, help = false;
};

extern const char* const USAGE;

// Failure(Exit::usage): what is wrong.
Options parse_options(const std::vector<std::string>& arguments);

// Where the overlay of a photo goes; "" if none is wanted.
std::filesystem::path overlay_path(const Options& options, const std::filesystem::path& photo);
