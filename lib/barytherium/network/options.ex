defmodule Barytherium.Network.Options do
  @moduledoc false
  # The options of `Barytherium.Network.start_link/4`: those of connecting, those of the parser, and
  # its own in `@own`.

  alias Barytherium.{Connection, Frame, Schema}
  alias Barytherium.Network.Socket

  @own [
    max_send_queue:
      {:limit, 64 * 1024 * 1024,
       "Bytes of `Sender.write/2` that may wait to be written. If more wait, the connection ends " <>
         "with `:enobufs`. Other writes wait for room. May be `:infinity`."},
    first_frame_timeout:
      {:time, 5_000,
       "Milliseconds until CONNECTED must arrive. After that the connection ends with `:timeout`."},
    heartbeat_receive_allowance:
      {:time, nil,
       "Milliseconds that the peer's heart-beat may be late, in addition to the agreed " <>
         "interval. After that the connection ends with `:timeout`. Default: the interval and 2 s."},
    high_water_mark:
      {:mark, 64,
       "Reading stops when the callback process has this many messages in its mailbox, and " <>
         "resumes when half of them are left. A message holds at most 256 frames and about " <>
         "1 MiB, or one larger frame. Reading also stops when " <>
         "these messages hold 32 MiB. `:infinity`: reading never stops."},
    inflate:
      {:boolean, false,
       "Inflate the bodies of messages that are compressed: gzip by its first bytes, zlib too, and what the header " <>
         "`content-encoding` says (`gzip`, `deflate`). Headers stay as they are, `content-length` too. A body that " <>
         "cannot be inflated is `{:compressed, body, reason}`, with the reason `:too_large`, `:damaged`, " <>
         "`:several_members` or `:trailing_bytes`."},
    max_inflated:
      {:size, 100 * 1024 * 1024,
       "Maximum size of an inflated body in bytes. One that would be larger is `{:compressed, body, :too_large}`. " <>
         "One of more than 64 KiB is begun when the process that gets it has room for it; see `high_water_mark`."}
  ]

  @schema Connection.Options.schema() ++ @own ++ Frame.ParseOptions.schema()
  @not_connecting Keyword.keys(@own ++ Frame.ParseOptions.schema())
  @receiving @not_connecting -- [:max_send_queue]

  @doc "The schema as a Markdown list."
  @spec docs() :: String.t()
  def docs, do: Schema.docs(@schema)

  @spec schema() :: Schema.t()
  def schema, do: @schema

  @doc "The names of all options, those for the transport included."
  @spec names() :: [atom()]
  def names, do: Connection.Options.names() ++ @not_connecting

  @doc """
  Checks options, and returns those of the schema with their defaults. Raises `ArgumentError` for an
  unknown option or an invalid value.
  """
  @spec check!([term()]) :: %{atom() => term()}
  def check!(opts) do
    {options, transport} = Schema.split(opts, @schema)
    Connection.Options.check_transport!(transport, options, names())
    options
  end

  @doc "The options in `opts` that `Barytherium.Connection.connect/3` takes."
  @spec connecting([term()]) :: [term()]
  def connecting(opts),
    do: opts |> Schema.effective() |> Enum.reject(&(Schema.name(&1) in @not_connecting))

  @doc "The options in `opts` that the receive loop takes."
  @spec receiving([term()]) :: keyword()
  def receiving(opts),
    do: opts |> Schema.effective() |> Enum.filter(&(Schema.name(&1) in @receiving))

  @doc "The options of the native connection, from the state of a receive loop."
  @spec connection(map(), Connection.socket()) :: map()
  def connection(%{options: options, hb_recv: hb_recv} = loop, socket) do
    options
    |> Map.take([
      :first_frame_timeout,
      :heartbeat_receive_allowance,
      :inflate,
      :max_inflated
    ])
    |> Map.merge(%{
      hb_recv: hb_recv,
      last_receipt: loop[:last_receipt],
      routes: loop[:routes],
      tls: Socket.tls(socket),
      websocket: Socket.websocket(socket),
      show_econnreset: Socket.show_econnreset?(socket),
      high_water_mark: high_water_mark(loop)
    })
  end

  # This loop's callback process waits for the loop to end. Until then it takes no messages, so
  # back-pressure would stop the loop for ever.
  defp high_water_mark(%{own_listener: true}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: :infinity}}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: mark}}), do: mark
end
