defmodule Barytherium.Tail.Body do
  @moduledoc false
  # What a body is: compressed or not, text or binary.

  @gzip <<31, 139, 8>>
  # zlib's number for: the largest window, in gzip's format.
  @gzip_window 31

  @type inflated :: {:plain | :broken | :inflated | :partial, binary()}

  @doc """
  Inflates a body that is gzip, to about `limit` bytes at most, because a small body can inflate to
  gigabytes. `:partial` is the beginning. A body that is not gzip, or `:broken`, is returned as it is.
  """
  @spec inflate(binary(), pos_integer()) :: inflated()
  def inflate(@gzip <> _rest = body, limit) do
    zlib = :zlib.open()

    try do
      # `:reset`: a gzip file may consist of several.
      :zlib.inflateInit(zlib, @gzip_window, :reset)
      zlib |> :zlib.safeInflate(body) |> collect(zlib, limit, 0, [])
    rescue
      # zlib says so about what it cannot inflate, and about bytes that are missing or follow.
      ErlangError -> {:broken, body}
    after
      :zlib.close(zlib)
    end
  end

  def inflate(body, _limit), do: {:plain, body}

  defp collect({:finished, output}, zlib, _limit, _size, done) do
    # This raises if the compressed data is not complete.
    :zlib.inflateEnd(zlib)
    {:inflated, IO.iodata_to_binary([done, output])}
  end

  defp collect({:continue, output}, zlib, limit, size, done) do
    size = size + IO.iodata_length(output)
    done = [done, output]

    if size > limit,
      do: {:partial, IO.iodata_to_binary(done)},
      else: zlib |> :zlib.safeInflate([]) |> collect(zlib, limit, size, done)
  end

  @doc "Whether bytes are text. They may end in the middle of a character if there is more."
  @spec kind(binary(), complete? :: boolean()) :: :text | :binary
  def kind(bytes, complete?) do
    if :binary.match(bytes, unprintable()) == :nomatch and utf8?(bytes, complete?),
      do: :text,
      else: :binary
  end

  # Texts contain tabs, line ends and escape sequences, but hardly other control characters.
  defp unprintable, do: for(byte <- 0..0x1F, byte not in ~c"\a\b\t\n\v\f\r\e", do: <<byte>>)

  defp utf8?(bytes, true), do: String.valid?(bytes)

  defp utf8?(bytes, false) do
    case :unicode.characters_to_binary(bytes) do
      {:error, _good, _bad} -> false
      _good -> true
    end
  end
end
