// An explain graph in onnxruntime: a photo in; scores, what was explained, and raw maps out.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#define ORT_API_MANUAL_INIT  // the functions come from a library that is opened at run time
#include <onnxruntime_cxx_api.h>

#include "resample.hpp"

// The library of an installed onnxruntime.  C++ wrappers of its C API are ready when this exists.
class Runtime {
 public:
  // Failure(Exit::library): there is no such library, it is another one, or it is too old.
  explicit Runtime(const std::string& path);
  const std::string& version() const { return version_; }

 private:
  std::unique_ptr<void, int (*)(void*)> library_;
  std::string version_;
};

// How a photo becomes the graph's input: `pycam.preprocess` in its metadata.
struct Preprocess {
  size_t height, width;
  std::vector<double> mean, std;  // of values from 0 to 255; not used where the graph takes pixels
  std::string channels;           // "RGB", "BGR" or "L"
  double share;                   // of the shorter side
  Filter filter;
};

// What a graph says about itself: `pycam.spec` in its metadata, and its inputs.
struct Spec {
  std::string method, image, targets, explained, score;
  std::vector<std::string> maps;  // outputs that a head makes heatmaps of, one per layer
  bool pixels;                    // the input is uint8 (1, height, width, 3), preprocessing is in the graph
  bool channels_last;
  bool probabilities;  // else the score is logits
  bool scored;         // the score is among the outputs
  std::optional<long long> classes;
  std::vector<std::string> labels;
};

struct Answer {
  long long explained;         // the class
  std::vector<double> scores;  // of all classes: probabilities, or what the model has where it is one number; may be none
  Box seen;                    // the part of the photo that the maps cover
  std::vector<Ort::Value> maps;  // float (1, 1, h, w) each
  double forward_ms;
};

class ExplainGraph {
 public:
  // Failure(Exit::graph): it cannot be loaded, or is not what this program can run.
  ExplainGraph(const std::string& path, int threads);
  const Spec& spec() const { return spec_; }

  // `target`: a class, or -1 for the top one.  May be called from several threads at once.
  Answer explain(const Picture& photo, long long target) const;

  // The class with this number or label.  Failure(Exit::usage): there is none.
  long long class_of(const std::string& text) const;
  std::string label(long long number) const;

 private:
  Ort::Env environment_;
  mutable Ort::Session session_;  // Session::Run is thread-safe, but not const
  Spec spec_;
  Preprocess preprocess_;
};
