/* The C interface between omnitrain and omnitrain_ffmpeg.so, the only part that links FFmpeg.
 *
 * FFmpeg brings 130 shared libraries; a machine that trains without video need not have them.
 * So it lives in a plugin, loaded when the first clip is met. One exported function fills a
 * table; only plain types cross. Every function returns an OMNI_FFMPEG_ code and, unless it is
 * OK, writes a message (always terminated) to error[error_size]. All functions may be called
 * from several threads at once; none keeps state. FFmpeg's own threads are not used: the loader
 * decodes many clips at a time.
 */
#ifndef OMNITRAIN_DATALOADER_MEDIA_FFMPEG_PLUGIN_H_
#define OMNITRAIN_DATALOADER_MEDIA_FFMPEG_PLUGIN_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OMNI_FFMPEG_ABI_VERSION 2

enum {
  OMNI_FFMPEG_OK = 0,
  OMNI_FFMPEG_BAD_DATA = 1,    /* the clip is torn, empty or not video */
  OMNI_FFMPEG_BAD_REQUEST = 2, /* the caller asked for something impossible */
  OMNI_FFMPEG_UNSUPPORTED = 3, /* this FFmpeg lacks the codec or container */
  OMNI_FFMPEG_NO_MEMORY = 4
};

typedef struct OmniVideoInfo {
  int64_t num_frames; /* counted by the demuxer, not taken from the header */
  double fps;         /* mean */
  double duration_s;  /* num_frames / fps */
  int32_t width;
  int32_t height;
} OmniVideoInfo;

typedef struct OmniVideoEncodeRequest {
  const uint8_t* rgb; /* [num_frames, height, width, 3] */
  int64_t num_frames;
  int32_t width, height; /* even */
  int32_t fps_numerator, fps_denominator;
  int32_t quality;       /* constant rate factor: 0 best .. 51; 23 is usual */
  const char* container; /* "mp4" (H.264 by libx264) or "webm" (VP8 by libvpx); yuv420p */
} OmniVideoEncodeRequest;

/* Told of each index, in order, when its frame is in `rgb`. */
typedef void (*OmniFrameFunction)(void* user, int64_t index);

typedef struct OmniFfmpegTable {
  uint32_t abi_version;
  const char* version; /* FFmpeg's own, static storage */

  int (*probe)(const uint8_t* data, int64_t size, OmniVideoInfo* info, char* error,
               int64_t error_size);

  /* Decodes the frames with the given indices (never decreasing, repeats allowed) in display
   * order, scales each to width x height (bicubic) and writes [num_indices, height, width, 3]
   * RGB; with on_frame (may be null) only one frame [height, width, 3], which each index finds
   * there in its turn. timestamps_s (may be null): the times of those frames, seconds from the
   * first one. Indices past the last decodable frame give that frame if they miss it by no more
   * than a twentieth of the clip (containers count hidden frames), else BAD_DATA. */
  int (*decode)(const uint8_t* data, int64_t size, const int64_t* indices, int64_t num_indices,
                int32_t width, int32_t height, uint8_t* rgb, OmniFrameFunction on_frame, void* user,
                double* timestamps_s, char* error, int64_t error_size);

  /* *file is to be released with free_file. The bytes depend only on the request. */
  int (*encode)(const OmniVideoEncodeRequest* request, uint8_t** file, int64_t* file_size,
                char* error, int64_t error_size);
  void (*free_file)(uint8_t* file);
} OmniFfmpegTable;

/* The one exported symbol. Returns OMNI_FFMPEG_OK, or OMNI_FFMPEG_UNSUPPORTED if the caller's
 * version is another. */
#define OMNI_FFMPEG_ENTRY "OmniFfmpegFillTable"
typedef int (*OmniFfmpegFillTableFunction)(uint32_t abi_version, OmniFfmpegTable* table);

#ifdef __cplusplus
}
#endif

#endif /* OMNITRAIN_DATALOADER_MEDIA_FFMPEG_PLUGIN_H_ */
