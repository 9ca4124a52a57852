defmodule Barytherium.ParseError do
  @moduledoc """
  The error for bytes that are not STOMP, or that exceed a limit.

    * `:rule` - the rule that was broken, see `t:rule/0`;
    * `:offset` - the position of the byte that broke it. It counts from 0 at the start of the
      stream;
    * `:excerpt` - the beginning of the offending line, at most 40 bytes. It never contains the value
      of a `login` or `passcode` header;
    * `:frames` - the complete frames before the error. Only `Barytherium.Frame.parse_all/2` sets
      this; a connection has already delivered them.

  A connection that ends with `{:barytherium, :disconnect, :parse_error}` logs the error once, at
  level `:error`. The log event has the exception as metadata `:barytherium_parse_error`.
  """

  @typedoc """
  The broken rule. The last three are limits, see `Barytherium.Network.start_link/4`. The others are
  rules of the specification.
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
