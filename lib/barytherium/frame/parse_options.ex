defmodule Barytherium.Frame.ParseOptions do
  @moduledoc false
  # The options of the parser, for `Barytherium.Frame.parse_state/1` and for connections.

  alias Barytherium.Schema

  @schema [
    max_header_line:
      {:size, 65_536,
       "Maximum size of a header line in bytes. A longer one ends the connection with " <>
         "`:parse_error`."},
    max_headers:
      {:size, 1_000,
       "Maximum number of header lines in a frame. More end the connection with " <>
         "`:parse_error`."},
    max_body:
      {:limit, 100 * 1024 * 1024,
       "Maximum size of a body in bytes. A larger one ends the connection with " <>
         "`:parse_error`. May be `:infinity`."},
    escapes:
      {{:one_of, [:strict, :lenient]}, :strict,
       "`:strict` ends the connection with `:parse_error` at an escape that STOMP does not " <>
         "define (`\\t`). `:lenient` keeps such escapes as they are, for brokers that write " <>
         "backslashes unescaped."},
    share_bodies:
      {:boolean, true,
       "Cut bodies of 65 bytes to 16 KiB out of shared binaries, which is faster. A process that " <>
         "keeps one of them keeps up to 8 times its size. With `false` each body is a binary of " <>
         "its own."}
  ]

  @doc "Their types, defaults and documentation."
  @spec schema() :: Schema.t()
  def schema, do: @schema

  @doc "The limits of the native parser, from a map with all of these options."
  @spec limits(%{atom() => term()}) :: map()
  def limits(options) do
    %{
      max_header_line: options.max_header_line,
      max_headers: options.max_headers,
      max_body: if(options.max_body == :infinity, do: Schema.unlimited(), else: options.max_body),
      keep_undefined_escapes: options.escapes == :lenient,
      share_bodies: options.share_bodies
    }
  end
end
