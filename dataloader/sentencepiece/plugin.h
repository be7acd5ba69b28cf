/* SentencePiece as a plugin: omnitrain_sentencepiece.so, loaded when the first tokenizer is.
 *
 * Debian's libsentencepiece carries an old protobuf inside and exports its symbols; in one
 * program with ours (gRPC) the two take each other's functions and it aborts. So it is opened with
 * RTLD_LOCAL | RTLD_DEEPBIND, where its symbols bind to each other, and talks through this table
 * of plain C. All texts are UTF-8 with a length, none need end in 0 unless said. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define OMNI_SENTENCEPIECE_ABI_VERSION 1
#define OMNI_SENTENCEPIECE_ENTRY "OmniSentencePieceFillTable"

typedef void (*OmniEmit)(void* argument, const char* data, size_t size);

typedef struct OmniSentencePieceTable {
  /* Null on failure, with what is wrong in `error` (ends in 0). */
  void* (*load)(const char* serialized, size_t size, char* error, size_t error_size);
  void (*release)(void* model);
  /* Token ids to out[0 .. capacity); returns how many there are, which may be more; -1: failed. */
  int64_t (*encode)(const void* model, const char* text, size_t size, int32_t* out,
                    int64_t capacity);
  /* 0: done. */
  int32_t (*decode)(const void* model, const int32_t* ids, int64_t num_ids, OmniEmit emit,
                    void* argument);
  int32_t (*size)(const void* model);
  int32_t (*bos)(const void* model); /* -1: none */
  int32_t (*eos)(const void* model);
  /* Of a piece that is one symbol wherever it stands in a text; -1: there is none such. */
  int32_t (*symbol_id)(const void* model, const char* piece, size_t size);
  int32_t (*piece)(const void* model, int32_t id, OmniEmit emit, void* argument);
  /* Trains on `lines` (one a line) with num_options pairs (name, value), each ending in 0; emits
   * the serialised model. 0: done; else `error` says why not. */
  int32_t (*train)(const char* const* options, int32_t num_options, const char* lines, size_t size,
                   OmniEmit emit, void* argument, char* error, size_t error_size);
} OmniSentencePieceTable;

/* The one exported function. 0: filled; else the plugin is of another version. */
typedef int32_t (*OmniSentencePieceFillTableFunction)(int32_t abi_version,
                                                      OmniSentencePieceTable* table);
