defmodule Barytherium.Frame.ValueEncoding do
  @moduledoc """
  Escapes and unescapes text as in header names and values (STOMP 1.2, "Value Encoding").

  The escapes are `\\r`, `\\n`, `\\c` for a colon, and `\\\\`. `Barytherium.Frame` and the receive loop
  escape and unescape headers themselves. These functions are for text from elsewhere.
  """

  alias Barytherium.Native

  @doc """
  Escapes `text`.

      iex> Barytherium.Frame.ValueEncoding.encode("a:b")
      "a\\\\cb"
  """
  @spec encode(binary()) :: binary()
  def encode(text) when is_binary(text), do: Native.escape(text)

  @doc """
  Unescapes `text`. Escapes that STOMP does not define stay as they are.

      iex> Barytherium.Frame.ValueEncoding.decode("a\\\\cb")
      "a:b"
  """
  @spec decode(binary()) :: binary()
  def decode(text) when is_binary(text), do: Native.unescape(text)
end
