-- A tenant's or project's service accounts go with it: a name that is free again must not bring old keys back to life.
CREATE FUNCTION tenancy.remove_service_accounts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'tenants' THEN
        DELETE FROM identity.users WHERE kind = 'SERVICE_ACCOUNT' AND owner_tenant = OLD.name;
    ELSE
        DELETE FROM identity.users WHERE kind = 'SERVICE_ACCOUNT' AND owner_tenant = OLD.tenant AND owner_project = OLD.name;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_service_accounts AFTER DELETE ON tenancy.tenants
    FOR EACH ROW EXECUTE FUNCTION tenancy.remove_service_accounts();
CREATE TRIGGER projects_service_accounts AFTER DELETE ON tenancy.projects
    FOR EACH ROW EXECUTE FUNCTION tenancy.remove_service_accounts();
