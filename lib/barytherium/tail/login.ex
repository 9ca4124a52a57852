defmodule Barytherium.Tail.Login do
  @moduledoc false
  # How the command-line programs connect: a password, the options of TLS, and what may be wrong.

  alias Barytherium.{Client, Error}
  alias Barytherium.Client.Endpoint
  alias Barytherium.Tail.{Target, Terminal}
  alias Barytherium.Text

  @doc "A function that returns the password, so that no crash report shows it; nil if none is missing."
  @spec passcode(nil | Target.t()) :: nil | (() -> String.t())
  def passcode(%{login: login}) when login != nil do
    given =
      System.get_env("STOMP_PASSCODE") || Terminal.password("Password of #{Text.line(login)}: ")

    if given not in [nil, ""], do: fn -> given end
  end

  def passcode(_no_password_missing), do: nil

  @doc "The options of a client that connects to the target. `passcode` is from `passcode/1`."
  @spec client(map(), nil | (() -> String.t())) :: keyword()
  def client(%{target: target} = options, passcode) do
    login = if passcode, do: [passcode: passcode], else: []
    [url: target.url.(), vhost: target.vhost] ++ login ++ ssl(options)
  end

  defp ssl(%{target: %{secure: true}} = options), do: [ssl: trust(options) ++ identity(options)]
  defp ssl(_plain), do: []

  defp trust(%{insecure: true}), do: [verify: :verify_none]
  defp trust(%{cacertfile: nil}), do: []
  defp trust(%{cacertfile: path}), do: [cacertfile: path]

  defp identity(options) do
    for name <- [:certfile, :keyfile], path = Map.get(options, name), do: {name, path}
  end

  @doc """
  Connects. If the first attempt fails the client ends: whoever waits for this wants to know. A connection that is lost
  later is made again `max_attempts` times. The calling process traps exits, and is the listener of the client.
  """
  @spec connect(keyword(), pos_integer() | :infinity) :: {:ok, pid(), map()} | {:error, Error.t()}
  def connect(client, max_attempts \\ 1) do
    opts = [max_attempts: max_attempts, listener: self()] ++ client
    {:ok, client} = Client.start_link(opts)

    receive do
      {:barytherium, :client, {{:connected, info}, ^client}} ->
        {:ok, client, info}

      {:barytherium, :client, {{:connection_failure, error}, ^client}} ->
        Process.exit(client, :shutdown)
        receive do: ({:EXIT, ^client, _reason} -> {:error, error})
    end
  end

  @doc "Why there is no connection, and what may be wrong, for `CommandLine.complain/1`."
  @spec failure(Error.t(), Target.t()) :: String.t()
  def failure(error, target) do
    {:ok, endpoint} = Endpoint.parse(target.url.())
    text = "cannot connect to #{Endpoint.to_string(endpoint)}: #{Exception.message(error)}"
    [Text.line(text) | List.wrap(hint(error.reason, target))] |> Enum.join("\n")
  end

  defp hint(:refused, %{vhost: vhost}) do
    "The virtual host was #{Text.line(vhost)}; ?host=name at the end of the URL changes it. In a user or a password, " <>
      "write %40 for @, %3A for : and %2F for /"
  end

  defp hint(reason, %{secure: false}) when reason in [:closed, :parse_error],
    do: "If this port speaks TLS, the URL begins with stomp+ssl://"

  defp hint(reason, %{secure: true}) when reason in [:closed, :unexpected_message],
    do: "If this port does not speak TLS, the URL begins with stomp://"

  defp hint(_reason, _target), do: nil
end
