defmodule Barytherium.ParseError do
  @moduledoc """
  Bytes that are not STOMP, or more of them than a limit allows.

    * `:rule` is what was broken, see `t:rule/0`;
    * `:offset` is the octet at which, from 0 at the start of the stream (of the data given, for
      `Barytherium.Frame.parse_all/2`);
    * `:excerpt` is the beginning of the offending line, at most 40 octets of it, and never the
      value of a `login` or `passcode` header;
    * `:frames` are the frames that were complete before it (`Barytherium.Frame.parse_all/2`
      only; a connection has delivered them).

  A connection that ends with `{:barytherium, :disconnect, :parse_error}` logs this error once,
  at level `:error`, with the exception itself as the metadata `:barytherium_parse_error`.
  """

  @typedoc """
  The broken rule: one of the specification's, or a limit (the last three; see
  `Barytherium.Network`).
  """
  @type rule ::
          :unknown_command
          | :bare_carriage_return
          | :header_without_colon
          | :empty_header_name
          | :undefined_escape
          | :invalid_content_length
          | :body_not_terminated
          | :unexpected_first_frame
          | :header_line_too_long
          | :too_many_headers
          | :body_too_large

  @type t :: %__MODULE__{
          rule: rule(),
          offset: non_neg_integer(),
          excerpt: binary(),
          frames: [Barytherium.Frame.t()],
          description: String.t()
        }

  defexception [:rule, :offset, :excerpt, :description, frames: []]

  @impl true
  def message(%__MODULE__{} = error) do
    excerpt = inspect(error.excerpt, binaries: :as_strings)
    "#{error.description}, at byte #{error.offset}: #{excerpt}"
  end

  @doc false
  @spec from_native(Barytherium.Native.failure(), [Barytherium.Frame.t()]) :: t()
  def from_native({rule, offset, excerpt, description}, frames \\ []) do
    %__MODULE__{
      rule: rule,
      offset: offset,
      excerpt: excerpt,
      description: description,
      frames: frames
    }
  end
end
