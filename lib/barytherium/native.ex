defmodule Barytherium.Native do
  @moduledoc false
  # The stubs of the native library. Nothing else calls it. `Barytherium.Network.Parser` wraps the
  # functions of a connection, `Barytherium.Frame` the others.
  #
  # `recipients` is `{listener, sender}`. Every function of a connection answers with what
  # `Barytherium.Network.ReceiveLoop` has to do next:
  #
  #   * `:read_dirty` - read, on a dirty thread: there is a lot to read;
  #   * `:read_inline` - read on this scheduler, when others had their turn;
  #   * `:await_turn` - `:read_inline` after the message `{:barytherium, :turn}`: many connections
  #     have a lot to read;
  #   * `{:await_input, ms}` - `:read_inline` when the socket is ready, or after this time;
  #   * `{:look, pid}` - `looked/3` with the length of the mailbox of `pid`, which may be too far behind;
  #   * `{:await_room, ms}` - `poll_room/2` after the message `{:barytherium, :room}`, or after this time;
  #   * `{:connected_frame, frame}` - tell the network, and `agree/2` with its answer;
  #   * `{:stop, reason, failure}` - it is over;
  #   * `{:owed, next}` - have the sender send the TLS records, or the WebSocket frame, that reading has made, then go on;
  #   * `{:relay, casts, next}` - cast these to the listener, which is on another node, then go on.

  @on_load :load

  @type connection :: reference()
  @type stats :: reference()
  @type routes :: reference()
  @type feed :: reference()
  @type file_lock :: reference()
  @typedoc "Several recipients need a key: the name of a header, or a part of the body."
  @type route :: %{
          recipients: [pid(), ...],
          key: nil | (header :: binary()) | {at :: non_neg_integer(), length :: pos_integer()},
          origin: pid() | {client :: pid(), pos_integer()},
          noted: nil | :ack | :message_id,
          inflate: nil | boolean(),
          feed: nil | feed()
        }
  @type tls_handshake :: reference()
  @type tls :: reference()
  @type websocket :: reference()
  @typedoc "Certificates and keys are in DER, ciphers are the IANA's names."
  @type tls_settings :: %{
          trust: :anyone | {:authorities, [binary()]},
          is_named: boolean(),
          chain: [binary()],
          key: nil | {:pkcs1 | :sec1 | :pkcs8, binary()},
          versions: [:tls12 | :tls13],
          ciphers: nil | [String.t()]
        }
  @typedoc "The name of a TLS alert, and a text for the log."
  @type tls_failure :: {atom(), String.t()}
  @typedoc "`parse_time` is in microseconds, `idle` in milliseconds since something was read."
  @type counters :: %{
          frames: non_neg_integer(),
          bytes: non_neg_integer(),
          slices: non_neg_integer(),
          waits: non_neg_integer(),
          pauses: non_neg_integer(),
          inflated: non_neg_integer(),
          not_inflated: non_neg_integer(),
          parse_time: non_neg_integer(),
          idle: nil | non_neg_integer()
        }
  @type recipients :: {GenServer.server(), pid()}
  @type failure :: {rule :: atom(), non_neg_integer(), binary(), String.t()}
  @type next ::
          :read_dirty
          | :read_inline
          | :await_turn
          | {:await_input, timeout()}
          | {:look, pid()}
          | {:await_room, non_neg_integer()}
          | {:connected_frame, Barytherium.Frame.t()}
          | {:stop, atom(),
             nil
             | :panic
             | :truncated
             | {:tls, String.t()}
             | {:websocket, String.t()}
             | {:refused, binary(), binary()}
             | {:unfinished_error, binary()}
             | failure()}
          | {:owed, next()}
          | {:relay, [{GenServer.server(), term()}], next()}

  @type encoded ::
          {:ok, iodata()}
          | {:error,
             {frame :: non_neg_integer(), :empty_header_name | :unescapable,
              header :: non_neg_integer()}}

  @doc false
  def load do
    :barytherium
    |> Application.app_dir("priv/native/libbarytherium_nif")
    |> String.to_charlist()
    |> :erlang.load_nif(System.schedulers_online())
  end

  @spec open(
          nil | non_neg_integer(),
          binary(),
          Barytherium.Frame.parse_state(),
          map(),
          recipients(),
          stats()
        ) ::
          {:ok, connection()} | {:error, :emfile | :ebadf | :used}
  def open(_descriptor, _pending, _parse_state, _options, _recipients, _stats), do: not_loaded()

  @spec confirm(connection(), :gen_tcp.socket()) :: :ok
  def confirm(_connection, _socket), do: not_loaded()

  @spec read_dirty(connection(), reference(), recipients()) :: next()
  def read_dirty(_connection, _reference, _recipients), do: not_loaded()

  @spec read_inline(connection(), reference(), recipients()) :: next()
  def read_inline(_connection, _reference, _recipients), do: not_loaded()

  @spec feed_dirty(connection(), binary(), recipients()) :: next()
  def feed_dirty(_connection, _bytes, _recipients), do: not_loaded()

  @spec feed_inline(connection(), binary(), recipients()) :: next()
  def feed_inline(_connection, _bytes, _recipients), do: not_loaded()

  @spec poll_room(connection(), recipients()) :: next()
  def poll_room(_connection, _recipients), do: not_loaded()

  @spec looked(connection(), queued :: non_neg_integer(), recipients()) :: next()
  def looked(_connection, _queued, _recipients), do: not_loaded()

  @spec disconnect(connection(), atom(), recipients()) :: next()
  def disconnect(_connection, _reason, _recipients), do: not_loaded()

  @spec agree(connection(), non_neg_integer()) :: :ok
  def agree(_connection, _interval), do: not_loaded()

  @spec new_routes() :: routes()
  def new_routes, do: not_loaded()

  @spec put_route(routes(), subscription :: [binary(), ...], route()) :: :ok
  def put_route(_routes, _subscription, _route), do: not_loaded()

  @spec clock() :: non_neg_integer()
  def clock, do: not_loaded()

  @spec new_feed(timestamp :: nil | binary(), sequence :: nil | {binary(), pos_integer()}) ::
          feed()
  def new_feed(_timestamp, _sequence), do: not_loaded()

  @spec feed(feed()) :: %{
          messages: non_neg_integer(),
          bytes: non_neg_integer(),
          idle: nil | non_neg_integer(),
          lag: nil | integer(),
          gaps: non_neg_integer(),
          missing: non_neg_integer(),
          repeats: non_neg_integer()
        }
  def feed(_feed), do: not_loaded()

  @spec acknowledged(routes(), subscription :: binary(), id :: binary()) :: :ok
  def acknowledged(_routes, _subscription, _id), do: not_loaded()

  @spec first_unacknowledged(routes(), subscription :: binary()) :: nil | binary()
  def first_unacknowledged(_routes, _subscription), do: not_loaded()

  @spec is_unacknowledged(routes(), subscription :: binary(), id :: binary()) :: boolean()
  def is_unacknowledged(_routes, _subscription, _id), do: not_loaded()

  @spec unacknowledged_through(routes(), subscription :: binary(), id :: binary()) :: [binary()]
  def unacknowledged_through(_routes, _subscription, _id), do: not_loaded()

  @spec take_unacknowledged(routes(), subscription :: binary()) :: [binary()]
  def take_unacknowledged(_routes, _subscription), do: not_loaded()

  @spec delete_route(routes(), subscription :: binary()) :: :ok
  def delete_route(_routes, _subscription), do: not_loaded()

  @spec set_urgent(routes(), boolean()) :: :ok
  def set_urgent(_routes, _urgent), do: not_loaded()

  @spec set_tap(routes(), nil | pid()) :: :ok
  def set_tap(_routes, _tap), do: not_loaded()

  @doc "Whether nothing is read because a recipient is behind."
  @spec paused(routes()) :: boolean()
  def paused(_routes), do: not_loaded()

  @spec tls_open(tls_settings(), name :: String.t()) ::
          {:ok, tls_handshake()} | {:error, tls_failure()}
  def tls_open(_settings, _name), do: not_loaded()

  @spec tls_knows_cipher(String.t()) :: boolean()
  def tls_knows_cipher(_name), do: not_loaded()

  @spec tls_handshake(tls_handshake(), binary()) ::
          {:continue | {:established, tls()} | tls_failure(), binary()}
  def tls_handshake(_handshake, _bytes), do: not_loaded()

  @spec tls_encrypt(tls(), iodata()) :: binary() | :busy | {:closed | :internal_error, binary()}
  def tls_encrypt(_tls, _data), do: not_loaded()

  @spec tls_encrypt_large(tls(), iodata()) :: binary() | {:closed | :internal_error, binary()}
  def tls_encrypt_large(_tls, _data), do: not_loaded()

  @spec tls_close(tls()) :: binary()
  def tls_close(_tls), do: not_loaded()

  @spec tls_read(tls(), binary(), non_neg_integer()) ::
          {:ok, binary()} | :more | :closed | tls_failure()
  def tls_read(_tls, _bytes, _length), do: not_loaded()

  @spec websocket_open(binary()) :: websocket()
  def websocket_open(_bytes), do: not_loaded()

  @spec websocket_message(iodata()) :: binary()
  def websocket_message(_data), do: not_loaded()

  @spec websocket_owed(websocket()) :: binary() | {:closed, binary()}
  def websocket_owed(_websocket), do: not_loaded()

  @spec websocket_close(websocket()) :: binary()
  def websocket_close(_websocket), do: not_loaded()

  @spec websocket_read(websocket(), binary(), non_neg_integer()) ::
          {:ok, binary()} | :more | :closed | :protocol_error
  def websocket_read(_websocket, _bytes, _length), do: not_loaded()

  @spec lock_file(String.t()) :: {:ok, file_lock()} | {:error, :locked | :enolck}
  def lock_file(_path), do: not_loaded()

  @spec new_stats() :: stats()
  def new_stats, do: not_loaded()

  @spec stats(stats()) :: counters()
  def stats(_stats), do: not_loaded()

  @spec is_abandoned(descriptor :: non_neg_integer()) :: boolean()
  def is_abandoned(_descriptor), do: not_loaded()

  @spec live_connections() :: non_neg_integer()
  def live_connections, do: not_loaded()

  @spec live_accounts() :: non_neg_integer()
  def live_accounts, do: not_loaded()

  @spec live_turns() :: non_neg_integer()
  def live_turns, do: not_loaded()

  @spec is_used(Barytherium.Frame.parse_state()) :: boolean()
  def is_used(_parse_state), do: not_loaded()

  @type parsed ::
          {[Barytherium.Frame.t()], Barytherium.Frame.parse_state(), nil | failure()} | :used

  @spec parse(binary(), Barytherium.Frame.parse_state()) :: parsed()
  def parse(_data, _parse_state), do: not_loaded()

  @spec parse_inline(binary(), Barytherium.Frame.parse_state()) :: parsed() | :dirty
  def parse_inline(_data, _parse_state), do: not_loaded()

  @typedoc "One frame after the other, or each in a message of a WebSocket."
  @type framing :: :stream | :messages

  @spec encode([Barytherium.Frame.t()], Barytherium.Frame.dialect(), framing()) :: encoded()
  def encode(_frames, _dialect, _framing), do: not_loaded()

  @spec encode_large([Barytherium.Frame.t()], Barytherium.Frame.dialect(), framing()) :: encoded()
  def encode_large(_frames, _dialect, _framing), do: not_loaded()

  @spec escape(binary()) :: binary()
  def escape(_text), do: not_loaded()

  @spec unescape(binary()) :: binary()
  def unescape(_text), do: not_loaded()

  defp not_loaded, do: :erlang.nif_error(:nif_not_loaded)
end
