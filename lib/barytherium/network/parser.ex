defmodule Barytherium.Network.Parser do
  @moduledoc false
  # A connection's native side: its session, and with a descriptor also its reading. Every
  # function but `agree/2` answers with what is to be done next, a `t:Barytherium.Native.step/0`;
  # frames and disconnects are on their way by then.

  alias Barytherium.Native
  alias Barytherium.Network.{Options, Socket}

  # A TLS record. Of the smallest frames that there are, it holds some 1,600, which take about
  # half of the millisecond that a scheduler may be held for; another thread would cost more.
  @inline_max 16 * 1024

  @enforce_keys [:connection, :recipients, :reference]
  defstruct [:connection, :recipients, :reference]

  @type t :: %__MODULE__{
          connection: Native.connection(),
          recipients: Native.recipients(),
          reference: reference()
        }

  @doc """
  Opens the native side. `descriptor` is the socket's, which is duplicated, or `nil` for bytes
  that come by `feed/2`; `pending` are bytes that were already read.
  """
  @spec open(nil | non_neg_integer(), binary(), map()) :: {:ok, t()} | {:error, :inet.posix()}
  def open(descriptor, pending, %{parse_state: parse_state} = loop) do
    show_econnreset = Socket.show_econnreset?(loop.socket)
    options = Options.connection(loop, show_econnreset)
    pending = parse_state.rest <> pending
    version = parse_state.version
    limits = parse_state.limits

    with {:ok, connection} <-
           Native.open(descriptor, pending, version, limits, options, loop.stats) do
      recipients = {loop.listener_pid, loop.network_pid, loop.sender_pid}
      reference = make_ref()
      {:ok, %__MODULE__{connection: connection, recipients: recipients, reference: reference}}
    end
  end

  @doc """
  The descriptor is known to have been the socket's when it was duplicated. Until then the end of
  the connection does not shut down what it is a duplicate of.
  """
  @spec confirm(t()) :: :ok
  def confirm(parser), do: Native.confirm(parser.connection)

  @doc """
  Reads from the descriptor. When the answer is to wait, a message
  `{:select, _, reference, :ready_input}` will tell that there is something to read.
  """
  @spec receive_slice(t()) :: Native.step()
  def receive_slice(parser),
    do: Native.receive_slice(parser.connection, parser.reference, parser.recipients)

  @doc """
  The same without a hop to another thread, if there is little to read; otherwise `:again`.
  """
  @spec receive_inline(t()) :: Native.step()
  def receive_inline(parser),
    do: Native.receive_inline(parser.connection, parser.reference, parser.recipients)

  @doc "Takes bytes that were read elsewhere; no bytes, to see whether time is up."
  @spec feed(t(), binary()) :: Native.step()
  def feed(parser, bytes) when byte_size(bytes) in 1..@inline_max,
    do: Native.feed_inline(parser.connection, bytes, parser.recipients)

  # None are for what is pending, which may be many.
  def feed(parser, bytes), do: Native.feed(parser.connection, bytes, parser.recipients)

  @doc "Ends the connection for `reason`, unless it has ended."
  @spec disconnect(t(), atom()) :: Native.step()
  def disconnect(parser, reason),
    do: Native.disconnect(parser.connection, reason, parser.recipients)

  @doc """
  To go on or not, with `queued` messages in the listener's mailbox, after `:full`. That is again
  `:full` if it is to be asked later.
  """
  @spec resume(t(), non_neg_integer()) :: :again | :full
  def resume(parser, queued), do: Native.resume(parser.connection, queued)

  @doc "Starts the heart-beats: the peer promised a byte every `interval` ms, 0 for no promise."
  @spec agree(t(), non_neg_integer()) :: :ok
  def agree(parser, interval), do: Native.agree(parser.connection, interval)
end
