defmodule Barytherium.Native do
  @moduledoc false
  # The stubs of the native library, and the only way to it. `Barytherium.Network.Parser` wraps
  # the connection's functions, `Barytherium.Frame` the others.
  #
  # `recipients` is `{listener, network, sender}`; a step is what `Barytherium.Network.Receiver`
  # has to do next.

  @on_load :load

  @type connection :: reference()
  @type stats :: reference()
  @type counters ::
          {frames :: non_neg_integer(), octets :: non_neg_integer(), slices :: non_neg_integer(),
           waits :: non_neg_integer(), pauses :: non_neg_integer(),
           parse_microseconds :: non_neg_integer(), idle_milliseconds :: nil | non_neg_integer()}
  @type recipients :: {GenServer.server(), GenServer.server(), pid()}
  @type failure :: {rule :: atom(), non_neg_integer(), binary(), String.t()}
  @type step ::
          :again
          | :yield
          | {:wait, timeout()}
          | :full
          | {:connected_frame, Barytherium.Frame.t()}
          | {:stop, nil | :panic | failure()}
          | {:relay, [{GenServer.server(), term()}], step()}

  @doc false
  def load do
    :barytherium
    |> :code.priv_dir()
    |> :filename.join('native/libbarytherium_nif')
    |> :erlang.load_nif(0)
  end

  @spec open(nil | non_neg_integer(), binary(), nil | String.t(), map(), map(), stats()) ::
          {:ok, connection()} | {:error, :emfile | :ebadf}
  def open(_descriptor, _pending, _version, _limits, _options, _stats), do: not_loaded()

  @spec confirm(connection()) :: :ok
  def confirm(_connection), do: not_loaded()

  @spec receive_slice(connection(), reference(), recipients()) :: step()
  def receive_slice(_connection, _reference, _recipients), do: not_loaded()

  @spec receive_inline(connection(), reference(), recipients()) :: step()
  def receive_inline(_connection, _reference, _recipients), do: not_loaded()

  @spec feed(connection(), binary(), recipients()) :: step()
  def feed(_connection, _bytes, _recipients), do: not_loaded()

  @spec feed_inline(connection(), binary(), recipients()) :: step()
  def feed_inline(_connection, _bytes, _recipients), do: not_loaded()

  @spec disconnect(connection(), atom(), recipients()) :: step()
  def disconnect(_connection, _reason, _recipients), do: not_loaded()

  @spec agree(connection(), non_neg_integer()) :: :ok
  def agree(_connection, _interval), do: not_loaded()

  @spec resume(connection(), non_neg_integer()) :: :again | :full
  def resume(_connection, _queued), do: not_loaded()

  @spec new_stats() :: stats()
  def new_stats, do: not_loaded()

  @spec stats(stats()) :: counters()
  def stats(_stats), do: not_loaded()

  @spec live_connections() :: non_neg_integer()
  def live_connections, do: not_loaded()

  @spec parse(binary(), nil | String.t(), map()) ::
          {[Barytherium.Frame.t()], nil | String.t(), non_neg_integer(), nil | failure()}
  def parse(_data, _version, _limits), do: not_loaded()

  @spec encode_head(atom(), [{binary(), binary()}], non_neg_integer(), nil | String.t()) ::
          {:ok, binary()} | {:error, :empty_header_name | :unescapable}
  def encode_head(_command, _headers, _body_length, _version), do: not_loaded()

  @spec encode_large_head(atom(), [{binary(), binary()}], non_neg_integer(), nil | String.t()) ::
          {:ok, binary()} | {:error, :empty_header_name | :unescapable}
  def encode_large_head(_command, _headers, _body_length, _version), do: not_loaded()

  @spec escape(binary()) :: binary()
  def escape(_text), do: not_loaded()

  @spec unescape(binary()) :: binary()
  def unescape(_text), do: not_loaded()

  defp not_loaded, do: :erlang.nif_error(:nif_not_loaded)
end
