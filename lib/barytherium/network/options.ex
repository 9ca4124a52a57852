defmodule Barytherium.Network.Options do
  @moduledoc false
  # The options of `Barytherium.Network.start_link/4`: this table is their schema, their defaults
  # and their documentation. Whatever is not in it belongs to the transport.

  @unlimited 0xFFFF_FFFF_FFFF_FFFF

  @schema [
    secure: {:boolean, false, "Connect with TLS. All other options go to `:ssl.connect/3`."},
    send_timeout: {:timeout, 10_000, "Milliseconds that a write may take."},
    buffer:
      {:size, nil,
       "Octets of the socket driver's own buffer. Default: the system's; with TLS 16 KiB."},
    receive_buffer: {:size, nil, "Octets of the kernel's receive buffer. Default: the system's."},
    send_buffer: {:size, nil, "Octets of the kernel's send buffer. Default: the system's."},
    first_frame_timeout:
      {:size, 5_000, "Milliseconds until CONNECTED must have come, or else `:timeout`."},
    heartbeat_receive_allowance:
      {:size, nil,
       "Milliseconds that a heart-beat may be late, beyond the agreed interval, before the " <>
         "connection ends with `:timeout`. Default: as long again as the interval."},
    high_water_mark:
      {:mark, 64,
       "Messages in the callback process's mailbox at which no more is read from the socket, " <>
         "until half of them are left. Each holds at most 256 frames, and some 1 MiB of them " <>
         "or a larger one; 32 MiB are too many in any case. `:infinity` never stops reading."},
    max_header_line:
      {:size, 65_536, "Octets of a header line, beyond which the peer is a `:parse_error`."},
    max_headers: {:size, 1_000, "Header lines of a frame, likewise."},
    max_body: {:limit, 100 * 1024 * 1024, "Octets of a body, likewise. May be `:infinity`."},
    escapes:
      {:escapes, :strict,
       "`:lenient` keeps escapes that STOMP does not define (`\\t`) as they are, instead of " <>
         "refusing them, for brokers that write backslashes unescaped."}
  ]

  @type t :: %{atom() => term()}

  @doc "The schema as a Markdown list."
  @spec docs() :: String.t()
  def docs do
    Enum.map_join(@schema, "\n", fn {name, {_type, default, text}} ->
      default = if is_nil(default), do: "", else: " Default: `#{inspect(default)}`."
      "  * `:#{name}` - #{text}#{default}"
    end)
  end

  @doc "Options with their defaults, and what is left for the transport."
  @spec split([term()]) :: {t(), [term()]}
  def split(opts) do
    {ours, transport} = Enum.split_with(opts, &ours?/1)
    Enum.each(ours, &validate!/1)
    defaults = Map.new(@schema, fn {name, {_type, default, _text}} -> {name, default} end)
    {Enum.into(ours, defaults), transport}
  end

  @doc "What the native parser is to accept."
  @spec limits(t()) :: map()
  def limits(options) do
    %{
      max_header_line: options.max_header_line,
      max_headers: options.max_headers,
      max_body: if(options.max_body == :infinity, do: @unlimited, else: options.max_body),
      keep_undefined_escapes: options.escapes == :lenient
    }
  end

  @doc "How the native connection is to behave, for a loop's state."
  @spec connection(map(), boolean()) :: map()
  def connection(%{options: options, hb_recv: hb_recv} = loop, show_econnreset) do
    options
    |> Map.take([:first_frame_timeout, :heartbeat_receive_allowance])
    |> Map.merge(%{
      hb_recv: hb_recv,
      show_econnreset: show_econnreset,
      high_water_mark: high_water_mark(loop)
    })
  end

  # The listener of this loop waits for it to end: it takes nothing before.
  defp high_water_mark(%{own_listener: true}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: :infinity}}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: mark}}), do: mark

  defp ours?({name, _value}) when is_atom(name), do: Keyword.has_key?(@schema, name)
  defp ours?(_other), do: false

  defp validate!({name, value}) do
    {type, _default, _text} = @schema[name]

    unless valid?(type, value) do
      raise ArgumentError, "invalid value for option #{inspect(name)}: #{inspect(value)}"
    end
  end

  defp valid?(:boolean, value), do: is_boolean(value)
  defp valid?(:size, value), do: is_integer(value) and value >= 0
  defp valid?(:timeout, value), do: value == :infinity or valid?(:size, value)
  defp valid?(:mark, value), do: value == :infinity or (is_integer(value) and value > 0)
  defp valid?(:limit, value), do: value == :infinity or valid?(:size, value)
  defp valid?(:escapes, value), do: value in [:strict, :lenient]
end
