defmodule Barytherium.Tail.Login do
  @moduledoc false
  # What the command-line programs need to connect: a password, and options of TLS.

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

  @doc "The option `:ssl` of a client, if the URL asks for TLS."
  @spec ssl(map()) :: keyword()
  def ssl(%{target: %{secure: true}} = options), do: [ssl: trust(options) ++ identity(options)]
  def ssl(_plain), do: []

  defp trust(%{insecure: true}), do: [verify: :verify_none]
  defp trust(%{cacertfile: nil}), do: []
  defp trust(%{cacertfile: path}), do: [cacertfile: path]

  defp identity(options) do
    for name <- [:certfile, :keyfile], path = Map.get(options, name), do: {name, path}
  end

  @doc "What may be wrong if the broker could not be connected to for this reason, or nil."
  @spec hint(atom(), Target.t()) :: nil | String.t()
  def hint(:refused, %{vhost: vhost}) do
    "The virtual host was #{Text.line(vhost)}; ?host=name at the end of the URL changes it. In a user or a password, " <>
      "write %40 for @, %3A for : and %2F for /"
  end

  def hint(reason, %{secure: false}) when reason in [:closed, :parse_error],
    do: "If this port speaks TLS, the URL begins with stomp+ssl://"

  def hint(reason, %{secure: true}) when reason in [:closed, :unexpected_message],
    do: "If this port does not speak TLS, the URL begins with stomp://"

  def hint(_reason, _target), do: nil

  @doc "Runs `fun` without the log: the program reports what happens, and the log would repeat it on stdout."
  @spec quietly((() -> result)) :: result when result: term()
  def quietly(fun) do
    %{level: level} = :logger.get_primary_config()
    :logger.set_primary_config(:level, :none)

    try do
      fun.()
    after
      :logger.set_primary_config(:level, level)
    end
  end
end
