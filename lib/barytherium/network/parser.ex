defmodule Barytherium.Network.Parser do
  @moduledoc false
  # A connection's native side: its session, and with a descriptor also the reading. The functions
  # that read or parse send the frames, and answer with what is to be done next, a
  # `t:Barytherium.Native.next/0`.

  alias Barytherium.Native
  alias Barytherium.Network.Options

  # A TLS record. The native side decodes some 600 of the smallest frames at once, which takes about
  # 0.4 ms. A hop to another thread would cost more than most records.
  @inline_max 16 * 1024

  @enforce_keys [:connection, :recipients, :reference]
  defstruct [:connection, :recipients, :reference]

  @type t :: %__MODULE__{
          connection: Native.connection(),
          recipients: Native.recipients(),
          reference: reference()
        }

  @doc """
  Opens the native side. `descriptor` is the socket's, which is duplicated, or `nil` if the bytes
  come by `feed/2`. `pending` are bytes that were already read.
  """
  @spec open(nil | non_neg_integer(), binary(), map()) :: {:ok, t()} | {:error, atom()}
  def open(descriptor, pending, loop) do
    options = Options.connection(loop, loop.socket)

    recipients = {loop.listener_pid, loop.sender_pid}

    case Native.open(descriptor, pending, loop.parse_state, options, recipients, loop.stats) do
      {:ok, connection} ->
        reference = make_ref()
        {:ok, %__MODULE__{connection: connection, recipients: recipients, reference: reference}}

      {:error, reason} ->
        {:error, reason}
    end
  end

  @doc """
  Tells the native side that it has duplicated the descriptor of `socket`, and not of another one.
  Before this call, the end of the connection does not shut anything down.
  """
  @spec confirm(t(), :gen_tcp.socket()) :: :ok
  def confirm(parser, socket), do: Native.confirm(parser.connection, socket)

  @doc """
  Reads from the descriptor, on a dirty I/O thread. If the answer is to await input, a message
  `{:select, _, reference, :ready_input}` comes when there is something to read.
  """
  @spec read_dirty(t()) :: Native.next()
  def read_dirty(parser),
    do: Native.read_dirty(parser.connection, parser.reference, parser.recipients)

  @doc "The same on the caller's scheduler: reads little."
  @spec read_inline(t()) :: Native.next()
  def read_inline(parser),
    do: Native.read_inline(parser.connection, parser.reference, parser.recipients)

  @doc """
  Takes bytes that were read elsewhere. An empty binary means: continue with bytes that were taken
  before, and check whether the peer is late.
  """
  @spec feed(t(), binary()) :: Native.next()
  def feed(parser, bytes) when byte_size(bytes) <= @inline_max,
    do: Native.feed_inline(parser.connection, bytes, parser.recipients)

  def feed(parser, bytes), do: Native.feed_dirty(parser.connection, bytes, parser.recipients)

  @doc "Continues with bytes that were taken before, which may be a lot."
  @spec feed_dirty(t()) :: Native.next()
  def feed_dirty(parser), do: Native.feed_dirty(parser.connection, "", parser.recipients)

  @doc "After `{:await_room, _}`: whether to go on."
  @spec poll_room(t()) :: Native.next()
  def poll_room(parser), do: Native.poll_room(parser.connection, parser.recipients)

  @doc "After `{:look, pid}`, with `queued` messages in the mailbox of `pid`: whether to go on."
  @spec looked(t(), non_neg_integer()) :: Native.next()
  def looked(parser, queued), do: Native.looked(parser.connection, queued, parser.recipients)

  @doc """
  Ends the connection for `reason`, unless it has ended. Delivers what was read before.

  The reason `:no_listener` ends the reading only: there may still be something to write.
  """
  @spec disconnect(t(), atom()) :: Native.next()
  def disconnect(parser, reason),
    do: Native.disconnect(parser.connection, reason, parser.recipients)

  @doc "Starts the heart-beats: the peer promised a byte every `interval` ms, 0 for no promise."
  @spec agree(t(), non_neg_integer()) :: :ok
  def agree(parser, interval), do: Native.agree(parser.connection, interval)
end
